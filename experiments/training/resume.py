"""Where a training begins: at the last checkpoint, at other weights, or anew."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

import sere_jax
from experiments.distributed.processes import done_by_first_process, restored_by_first_process
from experiments.run_folder.checkpoints import CHECKPOINTS
from experiments.run_folder.folder import RunFolder
from experiments.settings.checks import differences
from experiments.system.errors import UserError
from experiments.training.experiment import Experiment
from experiments.training.state import TrainState
from experiments.training.trained_model import load
from sere_jax.prior import started_from_gaussian

# Fields of `config.model` that no parameter depends on.
WITHOUT_WEIGHTS = ("dropout", "generative_dropout", "block_dropout", "rematerialize")


def resume(experiment: Experiment, folder: RunFolder) -> tuple[TrainState, float]:
    """The state to go on from, as host arrays, and the seconds of training so far.

    Raises:
        UserError: the checkpoints, or the weights to start from, cannot be used.
    """
    template = experiment.state_template()
    restored = folder.restore_latest(
        template,
        experiment.config,
        experiment.dataset.fingerprint,
        # The second save waits for the first one, and comes before the records of later steps.
        lost_after=2 * experiment.interval_in_steps("training", "checkpoint_every"),
    )
    if restored is None:
        restored = restored_by_first_process(
            template, lambda: (_first_state(experiment), {"train_seconds": 0.0})
        )
        assert restored is not None
    state, progress = restored
    return state, progress["train_seconds"]


@done_by_first_process
def check_initial_weights(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Checks weights that a training will start from, before anything is written."""
    if not os.path.isdir(workdir / CHECKPOINTS):  # False where pathlib would raise
        _initial_params(experiment)


def _first_state(experiment: Experiment) -> TrainState:
    state, weights = experiment.init_state(), _initial_params(experiment)
    if weights is None:
        return state
    started = jax.tree.map(np.asarray, state.params)
    params = started_from_gaussian(started, weights, experiment.model.config.hidden_size)
    return dataclasses.replace(state, params=params, ema_params=params)


def _initial_params(experiment: Experiment) -> Any:
    """The parameters of `config.training.initial_weights`; None, if it names none.

    They may be those of Gaussian priors where the model has splines.
    """
    source = experiment.config.training.initial_weights
    if not source:
        return None
    try:
        model, params = load(source)
    except (UserError, sere_jax.ConfigError) as error:
        raise UserError(f"config.training.initial_weights={source!r}: {error}") from error
    ours, theirs = map(dataclasses.asdict, (experiment.model.config, model.config))
    if (theirs["prior"], ours["prior"]) == ("gaussian", "spline"):
        theirs["prior"] = "spline"  # `started_from_gaussian` adds the splines
    changed = differences(ours, theirs, ignored=WITHOUT_WEIGHTS)
    if changed:
        raise UserError(
            f"config.training.initial_weights={source!r} are those of another model "
            f"({'; '.join(changed[:5])}); choose weights of the same "
            "model, with prior='spline' also of the one with prior='gaussian'"
        )
    return jax.tree.map(np.asarray, params)
