"""The training step: many optimizer updates a dispatch, on all devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

import sere_jax
from experiments.data import input_pipeline
from experiments.data.condition import condition_rows
from experiments.distributed.devices import DEVICES, mean_over_devices, num_devices, parallelize
from experiments.training.state import TrainState
from sere_jax.arrays import as_key

Array = jax.Array
MAX_PARTS = 16  # of an array, that `global_norm` adds place by place


class Examples(NamedTuple):
    """What the batches of a dispatch are taken from, see `rows_of`."""

    images: Array  # [num, h, w, c] uint8
    labels: Array | None  # [num]
    order: Array | None  # [num], the permutation of this epoch; None where images are streamed
    first_step: Array  # [], of the dispatch


class Batch(NamedTuple):
    """What a device computes the objective of."""

    x: Array  # [B, h, w, c] in data space
    keys: Array  # [B], for its noise
    condition: Array | None  # [B, C]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What an update depends on besides the state and the images."""

    model: sere_jax.LatentVariableModel
    optimizer: optax.GradientTransformation
    training: Any  # `config.training`
    kl_weight: Callable[[Array], Array]  # step -> weight of the KL
    augment: Callable[..., tuple[Array, Array | None]]  # see `input_pipeline.augmentation`
    num_examples: int  # size of the training set
    max_value: int  # largest value of its pixels
    # Step from which `training.num_train_samples` are drawn; one is drawn before it, for the ELBO.
    importance_weighted_from: int = 0
    has_labels: bool = False  # whether `dispatch` is given them
    is_streamed: bool = False  # whether it is given the images of its own batches alone

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training set."""
        return self.num_examples // self.training.batch_size


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


def create_train_dispatch(
    settings: StepSettings,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Compiles `dispatch` for all devices: (state, images, num_steps) -> (state, metrics).

    With `settings.has_labels` the labels are a fourth argument. With `settings.is_streamed` images
    and labels are those of the dispatch, [local devices, num, ...], as `stream` reads them.

    `num_steps` is an argument of the compiled program, not a constant of it: one compilation
    serves every length, and the updates do not depend on how they are cut into dispatches. The
    state is donated.
    """
    num_arguments = 4 if settings.has_labels else 3
    return parallelize(
        functools.partial(dispatch, settings),
        donate=(0,),
        split=(1, 3) if settings.is_streamed else (),
        num_arguments=num_arguments,
    )


def dispatch(
    settings: StepSettings,
    state: TrainState,
    images: Array,
    num_steps: Array,
    labels: Array | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Makes `num_steps` updates; they must not cross the end of an epoch.

    `images` [num, h, w, c] uint8 are the whole training set, or this device's parts of the batches
    one after another; `labels` [num] are theirs, if the model is conditional on them.
    """
    order = None if settings.is_streamed else order_of_epoch(settings, state.key, state.step)
    examples = Examples(images, labels, order, state.step)

    def body(_, carry):
        state, metrics = carry
        return update(settings, state, metrics, examples)

    state, metrics = jax.lax.fori_loop(0, num_steps, body, (state, StepMetrics.zeros()))
    return state, metrics.replace(parameter_norm=optax.tree.norm(state.params))


def order_of_epoch(settings: StepSettings, key: Array, step: Array) -> Array:
    """The order [num] of the epoch of `step`, of the run whose state has the raw key `key`."""
    order_key = jax.random.fold_in(as_key(key), 2**32 - 1)
    epoch = step // settings.steps_per_epoch
    return input_pipeline.epoch_order(order_key, epoch, settings.num_examples)


def update(
    settings: StepSettings, state: TrainState, metrics: StepMetrics, examples: Examples
) -> tuple[TrainState, StepMetrics]:
    """One update, or none if the objective or its gradient is not finite.

    `metrics` are those of this dispatch so far.
    """
    training = settings.training
    batch = make_batch(settings, state, examples)
    gradients, means = mean_over_devices(
        gradient(settings, state.step, state.params, batch, settings.kl_weight(state.step))
    )
    norm = global_norm(gradients)
    proceed = jnp.isfinite(norm) & jnp.isfinite(means.value)
    proceed &= state.consecutive_skips < training.max_consecutive_skips
    decay = jnp.minimum(training.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    clip: Array | float = 1.0
    if training.max_gradient_norm:
        clip = jnp.minimum(1.0, training.max_gradient_norm / norm)

    # Decided before the update, not by its result: each array is then written once, in place.
    params, ema_params, opt_state = jax.lax.cond(
        proceed,
        functools.partial(apply_gradients, settings.optimizer, state, clip, decay),
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


def make_batch(settings: StepSettings, state: TrainState, examples: Examples) -> Batch:
    """This device's part of the batch.

    All that is random is keyed by the run, the step and the place in the global batch.
    """
    batch_size = settings.training.batch_size
    device_batch = batch_size // num_devices()
    places = jax.lax.axis_index(DEVICES) * device_batch + jnp.arange(device_batch)
    rows = rows_of(settings, examples, state.step, places)
    step_key = jax.random.fold_in(as_key(state.key), state.step)
    keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(step_key, place), 3))(places)
    chosen, condition = settings.augment(examples.images[rows], keys[:, 0], state.step)
    if examples.labels is not None:
        size = settings.model.config.condition_size
        condition = condition_rows(examples.labels[rows], device_batch, size)
    x = sere_jax.to_data_space(settings.model, chosen, keys[:, 1], settings.max_value)
    return Batch(x, keys[:, 2], condition)


def rows_of(settings: StepSettings, examples: Examples, step: Array, places: Array) -> Array:
    """Where the images of these places [B] in the batch of `step` are in `examples.images`."""
    if examples.order is None:
        return (step - examples.first_step) * len(places) + jnp.arange(len(places))
    start = step % settings.steps_per_epoch * settings.training.batch_size
    return examples.order[start + places]


def gradient(
    settings: StepSettings, step: Array, params: Any, batch: Batch, kl_weight: Array
) -> tuple[Any, sere_jax.Objective]:
    """The gradient of `loss`, and the means that go with it, for the samples of this step.

    They are summed over `training.accumulate_steps` pieces of the batch, one after another, so that
    the activations of one piece at a time are kept.
    """
    of_batch = functools.partial(_gradient_of_piece, settings, step, params, kl_weight)
    num_pieces = settings.training.accumulate_steps
    if num_pieces == 1:
        return of_batch(batch)

    def add(total: Any, piece: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_batch(piece)), None

    pieces = jax.tree.map(lambda part: part.reshape(num_pieces, -1, *part.shape[1:]), batch)
    shapes = jax.eval_shape(of_batch, jax.tree.map(lambda part: part[0], pieces))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, pieces)
    return jax.tree.map(lambda leaf: leaf / num_pieces, total)


def _gradient_of_piece(
    settings: StepSettings, step: Array, params: Any, kl_weight: Array, piece: Batch
) -> tuple[Any, sere_jax.Objective]:
    one, final = (
        jax.grad(functools.partial(loss, settings, num_samples), has_aux=True)
        for num_samples in (1, settings.training.num_train_samples)
    )
    arguments = (params, piece, kl_weight)
    if settings.training.num_train_samples == 1 or settings.importance_weighted_from == 0:
        return final(*arguments)
    return jax.lax.cond(step < settings.importance_weighted_from, one, final, *arguments)


def loss(
    settings: StepSettings,
    num_samples: int,
    params: Any,
    batch: Batch,
    kl_weight: Array,
) -> tuple[Array, sere_jax.Objective]:
    """Minus the mean of `sere_jax.objective` in nats, and the means of all its terms."""
    terms = sere_jax.objective(
        settings.model,
        params,
        batch.x,
        batch.keys,
        kl_weight=kl_weight,
        num_samples=num_samples,
        precision=settings.training.precision,
        condition=batch.condition,
    )
    means = jax.tree.map(jnp.mean, terms)
    return -means.value, means


def apply_gradients(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    clip: Array | float,
    decay: Array,
    gradients: Any,
) -> tuple[Any, Any, Any]:
    """Parameters, their averages and the optimizer's state after a step along `clip * gradients`.

    The averages keep the share `decay` of what they were.
    """
    gradients = jax.tree.map(lambda gradient: clip * gradient, gradients)
    opt_state = _at_step(state.step, state.opt_state)
    updates, opt_state = optimizer.update(gradients, opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = jax.tree.map(
        lambda average, new: average + (1.0 - decay) * (new - average), state.ema_params, params
    )
    return params, ema_params, opt_state


def _at_step(step: Array, opt_state: Any) -> Any:
    """The optimizer's state with the learning rate of `step`: Optax does not count skipped ones."""
    return jax.tree.map(
        lambda part: part._replace(count=step) if _is_schedule(part) else part,
        opt_state,
        is_leaf=_is_schedule,
    )


def _is_schedule(part: Any) -> bool:
    return isinstance(part, optax.ScaleByScheduleState)


def global_norm(tree: Any) -> Array:
    """Square root of the sum of all squares, as `optax.tree.norm`.

    On CPUs XLA's sums of single arrays are slow. Where a few parts of an array are added first,
    place by place, its vector instructions do nearly all of the work: 1.3 ms instead of 5.6 for
    the gradient of `configs/mnist_mlp.py`.
    """
    return jnp.sqrt(sum(map(_sum_of_squares, jax.tree.leaves(tree)), jnp.zeros(())))


def _sum_of_squares(values: Array) -> Array:
    num_parts = next(num for num in range(MAX_PARTS, 0, -1) if values.size % num == 0)
    squares = jnp.square(values.reshape(num_parts, -1))
    return jnp.sum(sum(squares[part] for part in range(num_parts)))


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
