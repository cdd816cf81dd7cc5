"""Errors that are meant for the user of the command line, and how those of the system are told."""

import errno
import logging
import os
import pathlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# Exit codes.
USER_ERROR = 2
DIVERGED = 3
LOST_PROCESS = 4
INTERRUPTED = 130


class UserError(Exception):
    """Bad input: shown as one line on stderr, exit code 2, never a traceback.

    The message names the value, what is allowed and the way out.
    """


class TrainingDivergedError(Exception):
    """A training that cannot go on: shown as one line on stderr, exit code 3."""


@contextmanager
def told_in_one_line(*others: type[Exception]) -> Iterator[None]:
    """Ends the program with one line on stderr, exit code 2, for what the user can mend.

    That is `UserError`, what the system refused, and `others`.
    """
    kinds: tuple[type[Exception], ...] = (UserError, *others)
    try:
        yield
    except OSError as error:
        file = "" if error.filename is None else f"{error.filename}: "
        message = f"{file}{error.strerror or error}"
    except kinds as error:
        message = str(error)
    else:
        return
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(USER_ERROR)


def explain_system_error(error: OSError, workdir: pathlib.Path) -> str:
    """What the system refused to a run in `workdir`, where, and the way out, in one line."""
    reason = error.strerror or str(error) or type(error).__name__
    file = f" ({error.filename})" if error.filename else ""
    has_config = (workdir / "config.json").exists()  # orbax may just have created the folder anew
    if error.errno == errno.ENOENT and str(workdir) in file and not has_config:
        return f"--workdir={workdir} was deleted or moved during the run; put it back to resume"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"--workdir={workdir}: the disk is full, or a limit on it is reached: {reason}{file}; "
            "the last complete checkpoint is safe: make room, and the same command resumes"
        )
    return (
        f"--workdir={workdir}: {reason}{file}; the last complete checkpoint is safe: fix this, "
        "and the same command resumes"
    )


def exit_with(message: str, exit_code: int) -> NoReturn:
    """Ends this process with one line, and without waiting for others or for its own threads."""
    print("error:", message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def silence_repeated_errors() -> None:
    """Orbax raises the first error of a checkpoint and logs it and those that follow besides."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report
