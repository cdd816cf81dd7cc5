"""The model of a run folder and its weights, and its images."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sere_jax
from experiments.data import Dataset, load_dataset
from experiments.optimization import schedules
from experiments.run_folder import configuration
from experiments.run_folder.folder import load_weights
from experiments.system.errors import UserError
from experiments.system.paths import local_path
from experiments.training.state import state_template


def load(
    workdir: str | os.PathLike[str], *, checkpoint: str | None = None
) -> tuple[sere_jax.LatentVariableModel, Any]:
    """The model of a workdir and its averaged parameters, those that evaluation uses.

    The data set is not needed; a bijector or data layer from a file of your own is, so import that
    file first. The workdir is only read, and may be that of a run that goes on, or a folder with
    `config.json` and the weights that were exported from one.

    Args:
        workdir: of a run.
        checkpoint: "best", of the highest validation ELBO (the last one, if there was no
            validation), or "last"; None: the one that the run's configuration says.

    Raises:
        UserError: there is no run or no checkpoint, or it cannot be read.
        ConfigError: the model needs an extension whose file is not imported.
        ValueError: `checkpoint` is neither of the two.
    """
    if checkpoint not in (None, "best", "last"):
        raise ValueError(f"checkpoint={checkpoint!r} must be 'best' or 'last'")
    workdir = local_path(workdir, "workdir")
    config = _configuration_of(workdir)
    model, params, _ = load_model(config, workdir, checkpoint)
    return model, jax.tree.map(jnp.asarray, params)


def load_data(workdir: str | os.PathLike[str]) -> Dataset:
    """The images that a run was trained, validated and tested on.

    Raises:
        UserError: there is no run, or its images cannot be read.
    """
    config = _configuration_of(local_path(workdir, "workdir"))
    return load_dataset(config.dataset, tuple(config.model.data_shape))


def _configuration_of(workdir: pathlib.Path) -> Any:
    try:
        return configuration.get_config(str(workdir))
    except ValueError as error:
        raise UserError(str(error)) from error


def load_model(
    config: Any, workdir: pathlib.Path, checkpoint: str | None = None
) -> tuple[sere_jax.LatentVariableModel, Any, dict[str, Any]]:
    """The model of `config`, and what `load_weights` returns for the run in `workdir`."""
    model = sere_jax.create_model(config)
    optimizer = schedules.create_optimizer(config.training, optax.constant_schedule(0.0))
    template = state_template(model, optimizer, config.seed)
    return model, *load_weights(workdir, template, checkpoint or config.evaluation.checkpoint)
