"""The folder of one run: its configuration, its lock, and what was recorded about it."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.run_folder.recorded import CONFIG_FILE, read, with_later_fields
from experiments.settings.checks import as_json, differences
from experiments.system.errors import UserError
from experiments.system.files import remove_temporary_files, write_json_atomically

LOCK_FILE = ".lock"

# Fields that do not change what was trained; --mode=evaluate and relaunches may set them anew.
# Where the images are is among them: a run knows its images by their fingerprint.
FREE_FIELDS = (
    "dataset.data_dir",
    "dataset.download",
    "dataset.path",
    "evaluation",
    "sampling",
    "paper",
    "training.keep_checkpoints",
)


@contextlib.contextmanager
def exclusive(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the workdir and holds its lock, which the system releases if the process dies.

    Raises:
        UserError: it cannot be written to, or another process works in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK_FILE).open("w")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written to ({error.strerror}); choose another one"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--workdir={workdir} is in use by another process; wait for it, or choose "
                "another --workdir"
            ) from error
        remove_temporary_files(workdir)
        yield


def record_configuration(workdir: pathlib.Path, config: Any) -> None:
    """Writes `config.json`, or checks that the run in the workdir has the same configuration.

    Raises:
        UserError: the workdir belongs to a different run.
    """
    check_can_hold(workdir, config)
    write_json_atomically(workdir / CONFIG_FILE, config.to_dict())


def check_can_hold(workdir: pathlib.Path, config: Any) -> None:
    """Checks, without touching the workdir, that a run with `config` may start or go on there.

    Raises:
        UserError: the workdir belongs to a different run.
    """
    try:
        is_run = (workdir / CONFIG_FILE).exists()
    except OSError:  # an impossible name; `exclusive` says so
        return
    if is_run:
        check_configuration_of(workdir, config)
    elif (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
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
    check_same_configuration(f"--workdir={workdir} holds a run", recorded, config)


def check_same_configuration(subject: str, recorded: Any, config: Any) -> None:
    """Checks that what was recorded is the configuration `config`.

    Args:
        subject: what was recorded, for the message.
        recorded: the configuration then, from JSON.
        config: the configuration now.

    Raises:
        UserError: fields differ; the message names them.
    """
    changed = differences(as_json(config), with_later_fields(recorded), FREE_FIELDS)
    if changed:
        shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
        raise UserError(
            f"{subject} with another configuration ({shown}); "
            "choose another --workdir, or use the configuration it was started with"
        )
