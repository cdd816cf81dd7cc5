"""Stopping early: when the validation ELBO has not risen for `config.training.patience`."""

import math
from collections.abc import Iterable
from typing import Any

from experiments.run_folder.folder import RunFolder
from experiments.training.experiment import Experiment


class Patience:
    """What is left of the patience of a training, by the validation ELBOs so far.

    It follows from the log alone, so that a run that was killed goes on as if it had not been.

    Args:
        most_steps: without a rise at which the training stops; None: it never stops early.
        evaluations: steps and validation ELBOs in nats, oldest first; None stands for a NaN.
    """

    def __init__(self, most_steps: int | None, evaluations: Iterable[tuple[int, float | None]]):
        self._most_steps = most_steps
        self.last_step = self.best_step = 0
        self._best_elbo = -math.inf
        for step, elbo in evaluations:
            self.see(step, elbo)

    def see(self, step: int, elbo: float | None) -> None:
        """Takes the ELBO after `step` updates into account."""
        self.last_step = step
        if elbo is not None and elbo > self._best_elbo:
            self.best_step, self._best_elbo = step, elbo

    @property
    def is_over(self) -> bool:
        """Whether the last evaluation came so many steps after the best one."""
        if self._most_steps is None:
            return False
        return self.last_step - self.best_step >= self._most_steps


def patience_of(experiment: Experiment, folder: RunFolder, step: int) -> Patience:
    """That of the run after `step` updates."""
    if not experiment.config.training.patience:
        return Patience(None, ())
    most_steps = experiment.interval_in_steps("training", "patience")
    return Patience(most_steps, folder.validation_elbos(step))


def early_stop(experiment: Experiment, folder: RunFolder) -> dict[str, Any] | None:
    """For `results.json` the step at which a run stopped early, and that of its best ELBO.

    None of a run that did not.
    """
    patience = patience_of(experiment, folder, experiment.total_steps)
    if not patience.is_over or patience.last_step == experiment.total_steps:
        return None
    return {
        "step": patience.last_step,
        "best_step": patience.best_step,
        "patience": experiment.config.training.patience,
    }


def described(stop: dict[str, Any] | None) -> list[str]:
    """What to tell the user of it; nothing of a run that did not stop early."""
    if stop is None:
        return []
    return [
        f"stopped early at step {stop['step']}: the validation ELBO has not risen since step "
        f"{stop['best_step']}, for config.training.patience={stop['patience']!r}; the same command "
        "with a longer one, or with '', goes on"
    ]
