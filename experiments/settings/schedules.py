"""Durations, learning rate and KL weight."""

import re
from typing import Any

import jax.numpy as jnp
import optax

from experiments.system.errors import UserError

_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(steps?|epochs?|%)\s*")


def duration_in_steps(
    name: str, duration: str, *, steps_per_epoch: int, total_steps: int | None = None
) -> int:
    """Turns "500 steps", "1.5 epochs" or "10%" (of the training) into optimizer steps.

    Args:
        name: the field, for the message.
        duration: what it says.
        steps_per_epoch: optimizer steps an epoch.
        total_steps: optimizer steps of the training, for percentages.

    Raises:
        UserError: the duration is not of that form.
    """
    match = _DURATION.fullmatch(str(duration))
    is_absurd = match is not None and float(match[1]) >= 2**31
    if match is None or is_absurd or (match[2] == "%" and total_steps is None):
        raise UserError(
            f"{name}={duration!r} is not a duration; write '500 steps', '1.5 epochs' or '10%'"
        )
    amount, unit = float(match[1]), match[2]
    if unit == "%":
        return round(amount / 100 * (total_steps or 0))
    return round(amount * (steps_per_epoch if unit.startswith("epoch") else 1))


def is_longer_than_zero(duration: str) -> bool:
    """Whether a duration is above "0 steps", though it may round to none."""
    match = _DURATION.fullmatch(str(duration))
    return match is not None and float(match[1]) > 0


def total_training_steps(training: Any, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole training: `num_steps` if above 0, else `num_epochs`.

    Raises:
        UserError: they are too many to be counted.
    """
    total_steps = training.num_steps or training.num_epochs * steps_per_epoch
    if total_steps >= 2**31:
        raise UserError(
            f"config.training.num_epochs={training.num_epochs} are {total_steps} steps; at most "
            "2^31 - 1 can be counted: choose fewer epochs"
        )
    return total_steps


def learning_rate_schedule(
    training: Any, *, steps_per_epoch: int, total_steps: int
) -> optax.Schedule:
    """Linear warm-up to the learning rate, then constant, linear or cosine decay."""
    warmup = duration_in_steps(
        "config.training.warmup",
        training.warmup,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    warmup = min(warmup, total_steps // 2)
    peak = training.learning_rate
    final = peak * training.final_learning_rate_factor
    decay_steps = max(total_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final, decay_steps),
        "cosine": optax.cosine_decay_schedule(
            peak, decay_steps, alpha=training.final_learning_rate_factor
        ),
    }[training.learning_rate_schedule]
    if warmup == 0:
        return after
    # Step 0 already moves: the warm-up starts at peak / warmup, not at 0.
    before = optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1)
    return optax.join_schedules([before, after], [warmup])


def kl_weight_schedule(training: Any, *, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """The weight of the KL: from `kl_weight_start` to 1, linearly over `kl_warmup`."""
    steps = duration_in_steps(
        "config.training.kl_warmup",
        training.kl_warmup,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    start = training.kl_weight_start

    def schedule(step):
        progress = jnp.minimum(step / steps, 1.0) if steps else 1.0
        return start + (1.0 - start) * progress

    return schedule


def create_optimizer(training: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer named in the configuration, for gradients that are clipped already.

    Weight decay is decoupled from the gradient (AdamW).
    """
    scale = {"adam": optax.scale_by_adam, "adamax": optax.scale_by_adamax}[training.optimizer]
    parts = [scale(), optax.scale_by_learning_rate(schedule)]
    if training.weight_decay:
        parts.insert(1, optax.add_decayed_weights(training.weight_decay))
    return optax.chain(*parts)
