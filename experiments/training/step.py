"""The training step: many optimizer updates a dispatch, on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import sere_jax
from experiments.data import input_pipeline
from experiments.distributed.devices import DEVICES, mean_over_devices, num_devices, parallelize
from sere_jax.arrays import as_key

Array = jax.Array


@struct.dataclass
class TrainState:
    """All that a run needs to go on: saved, restored and updated as one."""

    step: Array  # [], updates tried
    key: Array  # raw key data of the run's PRNG key, uint32
    params: Any
    ema_params: Any  # exponential moving average, used in evaluation
    opt_state: Any
    skipped_steps: Array  # [], updates skipped as not finite
    consecutive_skips: Array  # [], the latest ones in a row; stays at the cap once reached


@struct.dataclass
class StepMetrics:
    """Sums over the updates of a dispatch, and the last values of some."""

    count: Array  # [], updates that were not skipped
    objective: Array  # [], nats, summed over updates
    log_likelihood: Array  # [], nats, summed
    kl: Array  # [], nats, summed
    gradient_norm: Array  # [], before clipping, summed
    max_gradient_norm: Array  # [], largest, skipped ones included
    clipped: Array  # [], updates whose gradient was shortened
    lowest_objective: Array  # [], of one update
    parameter_norm: Array  # [], after the last update

    @classmethod
    def zeros(cls) -> "StepMetrics":
        """Before the first update."""
        zero = jnp.zeros(())
        return cls(zero, zero, zero, zero, zero, zero, zero, jnp.inf * jnp.ones(()), zero)


def init_state(
    model: sere_jax.LatentVariableModel,
    optimizer: optax.GradientTransformation,
    seed: int,
    x: Array | None = None,
) -> TrainState:
    """The state before the first step; `x`, see `sere_jax.init`."""
    key = as_key(jax.random.key(seed))
    params = sere_jax.init(model, jax.random.fold_in(key, 0), x)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        key=jax.random.key_data(jax.random.fold_in(key, 1)),
        params=params,
        ema_params=params,
        opt_state=optimizer.init(params),
        skipped_steps=zero,
        consecutive_skips=zero,
    )


def state_template(
    model: sere_jax.LatentVariableModel, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Zeros of the structure and shapes of a state, for restoring; nothing is compiled."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, seed))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def create_train_dispatch(
    model: sere_jax.LatentVariableModel,
    optimizer: optax.GradientTransformation,
    training: Any,
    *,
    kl_weight: Callable[[Array], Array],
    num_examples: int,
    max_value: int,
    augment: Callable[[Array, Array, Array], Array],
    importance_weighted_from: int = 0,
) -> Callable[[TrainState, Array, int], tuple[TrainState, StepMetrics]]:
    """Builds the function (state, images, num_steps) -> (state, metrics).

    It makes `num_steps` updates on all devices. `num_steps` is an argument of the compiled
    program, not a constant of it: one compilation serves every length, and the updates do not
    depend on how they are cut into dispatches. A dispatch must not cross the end of an epoch.
    The state is donated.

    Args:
        model: from `sere_jax.create_model`.
        optimizer: optax transformation.
        training: `config.training`.
        kl_weight: schedule of the KL's weight.
        num_examples: size of the training set.
        max_value: largest value of its pixels.
        augment: see `input_pipeline.augmentation`.
        importance_weighted_from: step from which `training.num_train_samples` are drawn; before it
            it is one, for the ELBO.
    """
    batch_size = training.batch_size
    device_batch = batch_size // num_devices()
    steps_per_epoch = num_examples // batch_size

    def gradient_of(num_samples):
        def objective(params, x, keys, weight):
            terms = sere_jax.objective(
                model, params, x, keys, kl_weight=weight, num_samples=num_samples
            )
            means = jax.tree.map(jnp.mean, terms)
            return -means.value, means

        return jax.grad(objective, has_aux=True)

    def gradient(step, *arguments):
        final = gradient_of(training.num_train_samples)
        if training.num_train_samples == 1 or importance_weighted_from == 0:
            return final(*arguments)
        return jax.lax.cond(step < importance_weighted_from, gradient_of(1), final, *arguments)

    def batch(state, images, order):
        places = jax.lax.axis_index(DEVICES) * device_batch + jnp.arange(device_batch)
        start = state.step % steps_per_epoch * batch_size
        chosen = images[order[start + places]]
        step_key = jax.random.fold_in(as_key(state.key), state.step)
        keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(step_key, place), 3))(
            places
        )
        chosen = augment(chosen, keys[:, 0], state.step)
        x = sere_jax.to_data_space(model, chosen, keys[:, 1], max_value)
        return x, keys[:, 2]

    def update(state, metrics, images, order):
        x, keys = batch(state, images, order)
        gradients, means = mean_over_devices(
            gradient(state.step, state.params, x, keys, kl_weight(state.step))
        )
        norm = optax.tree.norm(gradients)
        proceed = jnp.isfinite(norm) & jnp.isfinite(means.value)
        proceed &= state.consecutive_skips < training.max_consecutive_skips
        decay = jnp.minimum(training.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        clip: Array | float = 1.0
        if training.max_gradient_norm:
            clip = jnp.minimum(1.0, training.max_gradient_norm / norm)

        def apply(gradients):
            gradients = jax.tree.map(lambda gradient: clip * gradient, gradients)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema_params = jax.tree.map(
                lambda average, new: average + (1.0 - decay) * (new - average),
                state.ema_params,
                params,
            )
            return params, ema_params, opt_state

        # Decided before the update, not by its result: each array is then written once, in place.
        params, ema_params, opt_state = jax.lax.cond(
            proceed,
            apply,
            lambda _: (state.params, state.ema_params, state.opt_state),
            gradients,
        )
        skipped = 1 - proceed.astype(jnp.int32)
        state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            skipped_steps=state.skipped_steps + skipped,
            consecutive_skips=jnp.where(
                state.consecutive_skips < training.max_consecutive_skips,
                (state.consecutive_skips + 1) * skipped,
                state.consecutive_skips,
            ),
        )
        return state, _accumulate(metrics, means, norm, clip < 1.0, proceed)

    def dispatch(state, images, num_steps):
        order_key = jax.random.fold_in(as_key(state.key), 2**32 - 1)
        order = input_pipeline.epoch_order(order_key, state.step // steps_per_epoch, num_examples)

        def body(_, carry):
            return update(carry[0], carry[1], images, order)

        state, metrics = jax.lax.fori_loop(0, num_steps, body, (state, StepMetrics.zeros()))
        return state, metrics.replace(parameter_norm=optax.tree.norm(state.params))

    return parallelize(dispatch, donate=(0,), num_arguments=3)


def _accumulate(metrics, means, norm, clipped, proceed):
    def add(total, value):
        return total + jnp.where(proceed, value, 0.0)

    return StepMetrics(
        count=add(metrics.count, 1.0),
        objective=add(metrics.objective, means.value),
        log_likelihood=add(metrics.log_likelihood, means.log_likelihood),
        kl=add(metrics.kl, means.kl),
        gradient_norm=add(metrics.gradient_norm, norm),
        max_gradient_norm=jnp.fmax(metrics.max_gradient_norm, norm),
        clipped=add(metrics.clipped, jnp.where(clipped, 1.0, 0.0)),
        lowest_objective=jnp.fmin(metrics.lowest_objective, means.value),
        parameter_norm=metrics.parameter_norm,
    )
