"""A training step of MAF-10, as the configuration has it, beside other implementations.

All have ten masked networks with two hidden layers of 1024 units on 3072 inputs, batches of 100 and
Adam. Ours is the whole production step: dequantization, clipping, averages, skips and metrics. A
training dispatches many updates at once; here all contenders make `UPDATES` in a row.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import production
from benchmarks.harness import Benchmark, Step, Target
from configs import cifar_maf

LEARNING_RATE = 1e-4
UPDATES = 5


class Sizes(NamedTuple):
    """Of the flows and their data."""

    num_values: int
    width: int
    num_flows: int
    batch_size: int

    @classmethod
    def choose(cls, quick: bool) -> "Sizes":
        """Those of the configuration, or tiny ones."""
        config = _config(quick)
        model = config.model
        num_values = math.prod(model.data_shape)
        return cls(num_values, model.flow_hidden_size, model.num_flows, config.training.batch_size)


def ours(quick: bool) -> Step:
    """The production step of `configs/cifar_maf.py:maf10`."""
    return production.train_step(_config(quick), UPDATES)


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

    from benchmarks import pytorch

    sizes = Sizes.choose(quick)
    flow = create_nflows(sizes).to(pytorch.device())
    x = torch.from_numpy(_batch(sizes)).to(pytorch.device())
    return pytorch.optimizer_step(
        flow, lambda: -flow.log_prob(x).mean(), learning_rate=LEARNING_RATE, updates=UPDATES
    )


def pythae(quick: bool) -> Step:
    """The flow of pythae, in PyTorch, without its batch normalization."""
    import torch

    from benchmarks import pytorch

    sizes = Sizes.choose(quick)
    flow = create_pythae(sizes).to(pytorch.device())
    x = torch.from_numpy(_batch(sizes)).to(pytorch.device())
    base = torch.distributions.Normal(0.0, 1.0)

    def loss():
        output = flow(x)
        return -(base.log_prob(output.out).sum(1) + output.log_abs_det_jac).mean()

    return pytorch.optimizer_step(flow, loss, learning_rate=LEARNING_RATE, updates=UPDATES)


def create_nflows(sizes: Sizes) -> Any:
    """A flow of nflows, on the CPU."""
    from nflows.flows import MaskedAutoregressiveFlow

    return MaskedAutoregressiveFlow(
        features=sizes.num_values,
        hidden_features=sizes.width,
        num_layers=sizes.num_flows,
        num_blocks_per_layer=1,  # after the first hidden layer
        use_residual_blocks=False,
    )


def create_pythae(sizes: Sizes) -> Any:
    """A flow of pythae, on the CPU."""
    from pythae.models.normalizing_flows import MAF, MAFConfig

    return MAF(
        MAFConfig(
            input_dim=(sizes.num_values,),
            n_made_blocks=sizes.num_flows,
            n_hidden_in_made=2,
            hidden_size=sizes.width,
            include_batch_norm=False,
        )
    )


def _config(quick):
    return production.reduced_flow(cifar_maf.get_config("maf10"), quick)


def _batch(sizes):
    shape = (sizes.batch_size, sizes.num_values)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


PEERS = {"flowjax": flowjax, "nflows": nflows, "pythae": pythae}
MAF_10 = Benchmark(
    name="maf10_step",
    work="train step of MAF-10: 3072 values, width 1024, batch 100",
    contenders={"ours": ours, **PEERS},
    targets=dict.fromkeys(PEERS, Target(">=", 2.0)),
    units=UPDATES,
)
