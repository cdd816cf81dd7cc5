"""Does a folder hold the run that is asked for? If not, it is left as it is."""

import pathlib
from typing import Any

from experiments.run_folder.checkpoints import CHECKPOINTS
from experiments.run_folder.configuration import CONFIG_FILE, read, with_later_fields
from experiments.settings.checks import as_json, differences
from experiments.system.errors import UserError

# Fields that do not change what was trained; --mode=evaluate and relaunches may set them anew.
# The place of the images is among them: a hash of their pixels says which they are.
FREE_FIELDS = (
    "dataset.bad_files",
    "dataset.data_dir",
    "dataset.download",
    "dataset.path",
    "dataset.placement",
    "evaluation",
    "sampling",
    "paper",
    "training.keep_checkpoints",
)


def check_can_train(workdir: pathlib.Path, config: Any) -> None:
    """Checks, without touching the workdir, that a run with `config` may start or go on there.

    Raises:
        UserError: the workdir belongs to a different run.
    """
    try:
        is_run = (workdir / CONFIG_FILE).exists()
    except OSError:  # an impossible name; `lock` says so
        return
    if is_run:
        check_configuration_of(workdir, config)
    elif (workdir / CHECKPOINTS).is_dir() and any((workdir / CHECKPOINTS).iterdir()):
        raise UserError(
            f"--workdir={workdir} has checkpoints but no {CONFIG_FILE}; choose another one"
        )


def check_configuration_of(workdir: pathlib.Path, config: Any) -> None:
    """Checks that the run in the workdir was trained with `config`.

    Raises:
        UserError: it was not, or there is none; the message names the fields that differ.
    """
    try:
        recorded = read(workdir)
    except ValueError as error:
        raise UserError(str(error)) from error
    _check_same_configuration(f"--workdir={workdir} holds a run", recorded, config)


def check_checkpoint(
    workdir: pathlib.Path, step: int, progress: dict[str, Any], config: Any, fingerprint: str
) -> None:
    """Checks that a checkpoint, saved with `progress`, has this configuration and these images.

    Raises:
        UserError: it has not.
    """
    if progress["dataset_fingerprint"] != fingerprint:
        raise UserError(
            f"the images of {config.dataset.name!r} are not those that {workdir} was "
            f"trained on (fingerprint {fingerprint}, then {progress['dataset_fingerprint']}); "
            "restore them, or choose another --workdir"
        )
    if "config" in progress:  # earlier versions did not record it
        subject = f"checkpoint {(workdir / CHECKPOINTS).absolute() / str(step)} is of a run"
        _check_same_configuration(subject, progress["config"], config)


def _check_same_configuration(subject, recorded, config):
    changed = differences(as_json(config), with_later_fields(recorded), FREE_FIELDS)
    if changed:
        shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
        raise UserError(
            f"{subject} with another configuration ({shown}); "
            "choose another --workdir, or use the configuration it was started with"
        )
