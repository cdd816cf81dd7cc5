"""A training step of MAF-10, as the configuration has it, beside other implementations.

All have ten masked networks with two hidden layers of 1024 units on 3072 inputs, batches of 100 and
Adam. Ours is the whole production step: dequantization, clipping, averages, skips and metrics. A
training dispatches many updates at once; here all contenders make `UPDATES` in a row.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Benchmark, Step
from configs import cifar_maf
from experiments import schedules, training
from experiments.parallel import replicate
from sere_jax import create_model

LEARNING_RATE = 1e-4
UPDATES = 5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the flows and their data."""

    side: int = 32
    width: int = 1024
    num_flows: int = 10
    batch_size: int = 100

    @property
    def num_values(self) -> int:
        """D."""
        return self.side * self.side * 3

    @classmethod
    def choose(cls, quick: bool) -> "Sizes":
        """The sizes of the paper, or tiny ones."""
        return cls(side=4, width=16, num_flows=2, batch_size=8) if quick else cls()


def ours(quick: bool) -> Step:
    """The production step of `configs/cifar_maf.py:maf10`."""
    sizes = Sizes.choose(quick)
    config = cifar_maf.get_config("maf10")
    config.model.data_shape = (sizes.side, sizes.side, 3)
    config.model.update(num_flows=sizes.num_flows, flow_hidden_size=sizes.width)
    config.training.batch_size = sizes.batch_size
    num_examples = 10 * sizes.batch_size
    model = create_model(config)
    optimizer = schedules.create_optimizer(config.training, lambda step: LEARNING_RATE)
    dispatch = training.create_train_dispatch(
        model,
        optimizer,
        config.training,
        kl_weight=lambda step: jnp.ones(()),
        num_examples=num_examples,
        max_value=255,
        horizontal_flip=False,
    )
    shape = (num_examples, sizes.side, sizes.side, 3)
    images = replicate(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
    state = replicate(training.init_state(model, optimizer, 0))

    def step():
        nonlocal state
        state, _ = dispatch(state, images, UPDATES)
        jax.block_until_ready(state)

    return step


def flowjax(quick: bool) -> Step:
    """The flow of flowjax, with an update by optax that reuses the memory of what it replaces."""
    import equinox
    import paramax
    from flowjax.bijections import Affine
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow

    sizes = Sizes.choose(quick)
    flow = masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(sizes.num_values)),
        transformer=Affine(),
        flow_layers=sizes.num_flows,
        nn_width=sizes.width,
        nn_depth=2,
        invert=True,
    )
    params, static = equinox.partition(
        flow,
        equinox.is_inexact_array,
        is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable),
    )
    optimizer = optax.adam(LEARNING_RATE)
    x = jnp.asarray(_batch(sizes))

    def loss(params):
        return -jnp.mean(paramax.unwrap(equinox.combine(params, static)).log_prob(x))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)

    def step():
        nonlocal params, state
        for _ in range(UPDATES):
            params, state = update(params, state)
        jax.block_until_ready(params)

    return step


def nflows(quick: bool) -> Step:
    """The flow of nflows, in PyTorch."""
    import torch
    from nflows.flows import MaskedAutoregressiveFlow

    sizes = Sizes.choose(quick)
    flow = MaskedAutoregressiveFlow(
        features=sizes.num_values,
        hidden_features=sizes.width,
        num_layers=sizes.num_flows,
        num_blocks_per_layer=1,  # after the first hidden layer
        use_residual_blocks=False,
    )
    x = torch.from_numpy(_batch(sizes))
    return _torch_step(flow, lambda: -flow.log_prob(x).mean())


def pythae(quick: bool) -> Step:
    """The flow of pythae, in PyTorch, without its batch normalization."""
    import torch
    from pythae.models.normalizing_flows import MAF, MAFConfig

    sizes = Sizes.choose(quick)
    flow = MAF(
        MAFConfig(
            input_dim=(sizes.num_values,),
            n_made_blocks=sizes.num_flows,
            n_hidden_in_made=2,
            hidden_size=sizes.width,
            include_batch_norm=False,
        )
    )
    x = torch.from_numpy(_batch(sizes))
    base = torch.distributions.Normal(0.0, 1.0)

    def loss():
        output = flow(x)
        return -(base.log_prob(output.out).sum(1) + output.log_abs_det_jac).mean()

    return _torch_step(flow, loss)


def _torch_step(flow, loss):
    import torch

    optimizer = torch.optim.Adam(flow.parameters(), LEARNING_RATE)

    def step():
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    return step


def _batch(sizes):
    shape = (sizes.batch_size, sizes.num_values)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


MAF_10 = Benchmark(
    name="maf10_step",
    work="train step of MAF-10: 3072 values, width 1024, batch 100",
    target="at least 1.5 times as fast as the fastest",
    contenders={"ours": ours, "flowjax": flowjax, "nflows": nflows, "pythae": pythae},
    units=UPDATES,
)
