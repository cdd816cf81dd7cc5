"""The programs that the commands run, built from configurations, on images drawn at random."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import sere_jax
from benchmarks.harness import Step
from experiments.data import input_pipeline
from experiments.distributed.devices import replicate
from experiments.optimization import schedules
from experiments.training.state import init_state
from experiments.training.step import StepSettings, create_train_dispatch

BATCHES = 10  # of a data set whose size does not matter
QUICK_BATCH_SIZE = 8


def reduced(config: ConfigDict, quick: bool, **model: Any) -> ConfigDict:
    """The configuration itself, or a copy with small batches and other fields of the model."""
    if not quick:
        return config
    copy = config.copy_and_resolve_references()
    copy.model.update(model)
    copy.training.batch_size = QUICK_BATCH_SIZE
    return copy


def reduced_mlp(config: ConfigDict, quick: bool) -> ConfigDict:
    """The same for MLPs on runs of binary pixels: at most 4 layers, of 2 latents."""
    layers = min(config.model.num_layers, 4)
    sizes = {"latent_shape": (2,), "latent_sizes": (), "hidden_size": 8}
    return reduced(config, quick, data_shape=(4, 4, 1), num_layers=layers, **sizes)


def reduced_resnet(config: ConfigDict, quick: bool) -> ConfigDict:
    """The same for residual networks on sub-lattices: 4 layers on maps of 2 x 2 positions."""
    return reduced(
        config,
        quick,
        data_shape=(4, 4, 3),
        num_layers=4,
        latent_shape=(2, 2, 2),
        data_context=min(config.model.data_context, 4),
        hidden_size=8,
    )


def reduced_flow(config: ConfigDict, quick: bool) -> ConfigDict:
    """The same for masked autoregressive flows: 16 units on 48 values.

    Without direct connections, which other implementations do not have.
    """
    config.model.flow_direct_connections = False
    return reduced(config, quick, data_shape=(4, 4, 3), flow_hidden_size=16, num_flows=2)


def random_images(config: ConfigDict, num: int) -> np.ndarray:
    """A data set [num, *data_shape] uint8."""
    shape = (num, *config.model.data_shape)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def until_ready(function: Callable[..., Any], *arguments: Any) -> Step:
    """A step that calls the function and waits for its result."""

    def step():
        jax.block_until_ready(function(*arguments))

    return step


def train_step(
    config: ConfigDict,
    updates: int,
    *,
    num_examples: int | None = None,
    model: sere_jax.LatentVariableModel | None = None,
) -> Step:
    """The production step: data, gradients, clipping, averages, skips and metrics.

    Args:
        config: of the experiment.
        updates: how many are made in a dispatch.
        num_examples: size of the data set, `BATCHES` batches by default.
        model: instead of that of the configuration, with the same parameters.
    """
    num_examples = num_examples or BATCHES * config.training.batch_size
    dispatch, create_state = _create_dispatch(config, num_examples, model)
    state, images = replicate(create_state()), replicate(random_images(config, num_examples))

    def step():
        nonlocal state
        state, _ = dispatch(state, images, updates)
        jax.block_until_ready(state)

    return step


def compile_train_step(config: ConfigDict) -> jax.stages.Compiled:
    """The program of the production step, traced and compiled anew, without any array."""
    num_examples = BATCHES * config.training.batch_size
    dispatch, create_state = _create_dispatch(config, num_examples)
    images = jax.ShapeDtypeStruct((num_examples, *config.model.data_shape), jnp.uint8)
    return dispatch.func.lower(*dispatch.args, jax.eval_shape(create_state), images, 1).compile()


def _create_dispatch(config, num_examples, model=None):
    """The dispatch of the trainer, and what makes its first state."""
    ours = sere_jax.create_model(config)
    optimizer = schedules.create_optimizer(
        config.training, lambda step: config.training.learning_rate
    )
    settings = StepSettings(
        model=model or ours,
        optimizer=optimizer,
        training=config.training,
        kl_weight=lambda step: jnp.ones(()),
        augment=input_pipeline.augmentation(config.dataset, affine_until=0, max_value=255),
        num_examples=num_examples,
        max_value=255,
    )
    return create_train_dispatch(settings), functools.partial(init_state, ours, optimizer, 0)
