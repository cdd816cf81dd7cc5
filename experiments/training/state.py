"""The state of a training: all that a run needs to go on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import sere_jax
from experiments.training.keys import key_for
from sere_jax.arrays import in_float32

Array = jax.Array


@struct.dataclass
class TrainState:
    """Saved, restored and updated as one."""

    step: Array  # [], updates tried
    key: Array  # raw key data of the run's PRNG key, uint32
    params: Any
    ema_params: Any  # exponential moving average, used in evaluation
    opt_state: Any
    skipped_steps: Array  # [], updates skipped as not finite
    consecutive_skips: Array  # [], the latest ones in a row; stays at the cap once reached


def init_state(
    model: sere_jax.LatentVariableModel,
    optimizer: optax.GradientTransformation,
    seed: int,
    x: Array | None = None,
) -> TrainState:
    """The state before the first step; `x`, see `sere_jax.init`."""
    params = sere_jax.init(model, key_for("init", seed), x)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        key=jax.random.key_data(key_for("train", seed)),
        params=params,
        ema_params=params,
        opt_state=optimizer.init(params),
        skipped_steps=zero,
        consecutive_skips=zero,
    )


@in_float32
def state_template(
    model: sere_jax.LatentVariableModel, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Zeros of the structure and shapes of a state, for restoring; nothing is compiled."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, seed))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def count_parameters(params: Any) -> int:
    """Number of values in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
