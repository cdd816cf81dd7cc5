"""The schedules of a training that was made longer by `--extend`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.training.experiment import Experiment, planned


def described(continuations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to tell the user of a training that was made longer, a sentence each."""
    does = {
        "hold": "holds (schedule_when_extended=restart would begin it anew)",
        "restart": "begins anew",
    }
    return [
        f"extended from {entry['from_epochs']:.4g} to {entry['to_epochs']:.4g} epochs; from step "
        f"{entry['from_steps']} the learning rate {does[entry['schedule']]}"
        for entry in continuations
    ]


def continued(experiment: Experiment, continuations: Sequence[Mapping[str, Any]]) -> Experiment:
    """The experiment with the schedules of a training that was made longer.

    Until its former end everything is as it was: percentages and schedules are those of its first
    length. From there the learning rate holds, or begins anew.

    Args:
        experiment: of the configuration with the new length.
        continuations: of the run, oldest first; see `run_folder.continuations`.
    """
    if not continuations:
        return experiment
    restarts = [
        (entry["from_steps"], entry["to_steps"] - entry["from_steps"])
        for entry in continuations
        if entry["schedule"] == "restart"
    ]
    first_total = continuations[0]["from_steps"]
    training, steps_per_epoch = experiment.config.training, experiment.steps_per_epoch
    return dataclasses.replace(
        experiment, **planned(training, steps_per_epoch, first_total, restarts)
    )
