"""One process at a time works in a run folder."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from experiments.system.errors import UserError
from experiments.system.files import remove_temporary_files

LOCK_FILE = ".lock"


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the workdir and holds its lock, which the system releases if the process dies.

    Raises:
        UserError: it cannot be written to, or another process works in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK_FILE).open("w")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written to ({error.strerror}); choose another one"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--workdir={workdir} is in use by another process; wait for it, or choose "
                "another --workdir"
            ) from error
        except OSError as error:
            raise UserError(
                f"--workdir={workdir} cannot be locked ({error.strerror}); choose a folder on a "
                "file system with locks"
            ) from error
        remove_temporary_files(workdir)
        yield
