"""Durations in steps, epochs and percent of the training."""

import pytest

from configs import base
from experiments.settings import durations
from experiments.system.errors import UserError

STEPS = {"steps_per_epoch": 40, "total_steps": 1000}


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("1.5 epochs", 60),
        ("1 epoch", 40),
        ("10%", 100),
        ("0 steps", 0),
        ("1e2 steps", 100),
        ("1e9 epochs", 2**31 - 1),
        ("3e9 steps", 2**31 - 1),
        ("2e9%", 2**31 - 1),
    ],
)
def test_a_duration_is_given_in_steps_epochs_or_percent(duration, steps):
    assert durations.duration_in_steps("field", duration, **STEPS) == steps


@pytest.mark.parametrize("duration", ["soon", "-1 steps", "5", "", "1 day", "steps", 7, None])
def test_anything_else_is_refused_with_field_and_value(duration):
    with pytest.raises(UserError, match=r"config\.x=.*is not a duration"):
        durations.duration_in_steps("config.x", duration, **STEPS)


def test_number_of_steps_goes_before_number_of_epochs():
    training = base.get_config().training
    training.num_epochs, training.num_steps = 3, 0
    assert durations.total_training_steps(training, 40) == 120
    training.num_steps = 7
    assert durations.total_training_steps(training, 40) == 7
