"""Durations: "500 steps", "1.5 epochs" or "10%" of the training."""

import math
import re
from typing import Any

from experiments.system.errors import UserError
from sere_jax.rules import Rule

MOST_STEPS = 2**31 - 1  # steps are counted by 32-bit integers
_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(steps?|epochs?|%)\s*")


def duration_in_steps(
    name: str, duration: str, *, steps_per_epoch: int, total_steps: int | None = None
) -> int:
    """Turns a duration into optimizer steps, at most `MOST_STEPS`, which no training has.

    Args:
        name: the field, for the message.
        duration: what it says.
        steps_per_epoch: optimizer steps an epoch.
        total_steps: optimizer steps of the training, for percentages.

    Raises:
        UserError: the duration is not of that form.
    """
    match = _DURATION.fullmatch(str(duration))
    is_finite = match is not None and math.isfinite(float(match[1]))
    if match is None or not is_finite or (match[2] == "%" and total_steps is None):
        raise UserError(
            f"{name}={duration!r} is not a duration; write '500 steps', '1.5 epochs' or '10%'"
        )
    amount, unit = float(match[1]), match[2]
    if unit == "%":
        steps = amount / 100 * (total_steps or 0)
    else:
        steps = amount * (steps_per_epoch if unit.startswith("epoch") else 1)
    return round(min(steps, MOST_STEPS))


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
    if total_steps > MOST_STEPS:
        raise UserError(
            f"config.training.num_epochs={training.num_epochs} are {total_steps} steps; at most "
            "2^31 - 1 can be counted: choose fewer epochs"
        )
    return total_steps


def horizon_steps(training: Any, *, steps_per_epoch: int, total_steps: int) -> int:
    """Optimizer steps that schedules and percentages take for the whole training, at least 1."""
    steps = duration_in_steps(
        "config.training.schedule_horizon",
        training.schedule_horizon,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    return max(steps, 1)


def _is_duration(value: Any) -> bool:
    try:
        duration_in_steps("duration", value, steps_per_epoch=1, total_steps=1)
    except UserError:
        return False
    return True


DURATION = Rule("a duration: '500 steps', '1.5 epochs' or '10%'", _is_duration)
INTERVAL = Rule(
    "a duration above 0: '500 steps', '1.5 epochs' or '10%'",
    lambda v: _is_duration(v) and is_longer_than_zero(v),
)
INTERVAL_OR_NONE = Rule(
    f"'' (never), or {INTERVAL.allowed}", lambda v: v == "" or INTERVAL.allows(v)
)
