"""Does a folder hold the run that is asked for? If not, it is left as it is."""

import pathlib
from typing import Any

from experiments.run_folder.checkpoints import CHECKPOINTS
from experiments.run_folder.configuration import (
    CONFIG_FILE,
    EXTENDABLE_FIELDS,
    FREE_FIELDS,
    read,
    with_later_fields,
)
from experiments.run_folder.continuations import read_continuations
from experiments.settings.checks import as_json, differences
from experiments.system.errors import UserError


def check_can_train(workdir: pathlib.Path, config: Any, *, extend: bool = False) -> None:
    """Checks, without touching the workdir, that a run with `config` may start or go on there.

    Raises:
        UserError: the workdir belongs to a different run; with `extend`, a run that differs in
            more than its length, or none.
    """
    try:
        is_run = (workdir / CONFIG_FILE).exists()
    except OSError:  # an impossible name; `lock` says so
        return
    if is_run and extend:
        _check(workdir, config, also_free=EXTENDABLE_FIELDS)
        read_continuations(workdir)
    elif is_run:
        check_configuration_of(workdir, config)
    elif extend:
        raise UserError(
            f"--extend: there is no run in --workdir={workdir} to train for longer; name its "
            "--workdir, or leave out --extend"
        )
    elif (workdir / CHECKPOINTS).is_dir() and any((workdir / CHECKPOINTS).iterdir()):
        raise UserError(
            f"--workdir={workdir} has checkpoints but no {CONFIG_FILE}; choose another one"
        )


def check_configuration_of(workdir: pathlib.Path, config: Any) -> None:
    """Checks that the run in the workdir was trained with `config`.

    Raises:
        UserError: it was not, or there is none; the message names the fields that differ.
    """
    _check(workdir, config)


def _check(workdir, config, also_free=()):
    try:
        recorded = read(workdir)
    except ValueError as error:
        raise UserError(str(error)) from error
    _check_same_configuration(
        f"--workdir={workdir} holds a run", recorded, config, also_free, extend=bool(also_free)
    )


def check_images(
    workdir: pathlib.Path, progress: dict[str, Any], config: Any, fingerprint: str
) -> None:
    """Checks that a checkpoint, saved with `progress`, has these images.

    Raises:
        UserError: it has not.
    """
    if progress["dataset_fingerprint"] != fingerprint:
        raise UserError(
            f"the images of {config.dataset.name!r} are not those that {workdir} was "
            f"trained on (their fingerprint is {fingerprint}; in the training it was "
            f"{progress['dataset_fingerprint']}); "
            "restore them, or choose another --workdir"
        )


def check_checkpoint(
    workdir: pathlib.Path, step: int, progress: dict[str, Any], config: Any, fingerprint: str
) -> None:
    """Checks that a checkpoint, saved with `progress`, has this configuration and these images.

    Raises:
        UserError: it has not.
    """
    check_images(workdir, progress, config, fingerprint)
    if "config" in progress:  # earlier versions did not record it
        subject = f"checkpoint {(workdir / CHECKPOINTS).absolute() / str(step)} is of a run"
        # One of a run that was made longer may be older than that.
        also_free = EXTENDABLE_FIELDS if read_continuations(workdir) else ()
        _check_same_configuration(subject, progress["config"], config, also_free)


def _check_same_configuration(subject, recorded, config, also_free, *, extend=False):
    ours, theirs = as_json(config), with_later_fields(recorded)
    changed = differences(ours, theirs, (*FREE_FIELDS, *also_free))
    if not changed:
        return
    shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
    way_out = ""
    is_length = not differences(ours, theirs, (*FREE_FIELDS, *EXTENDABLE_FIELDS))
    if is_length and _may_be_longer(ours["training"], theirs["training"]):
        way_out = "add --extend to train it for longer, "
    elif extend:
        way_out = "--extend changes its length alone: "
    raise UserError(
        f"{subject} with another configuration ({shown}); {way_out}"
        "choose another --workdir, or use the configuration it was started with"
    )


def _may_be_longer(ours, theirs):
    """Whether neither number says less; where one counts epochs and the other steps, perhaps."""
    if bool(ours["num_steps"]) != bool(theirs["num_steps"]):
        return True
    counted = "num_steps" if ours["num_steps"] else "num_epochs"
    return ours[counted] >= theirs[counted]
