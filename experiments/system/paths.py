"""Paths as users write them: in flags, in fields of a configuration, in calls from Python."""

import os
import pathlib
import re

from experiments.system.errors import UserError


def local_path(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """The path on this machine, with the home folder in place of `~`.

    Args:
        path: as it was written.
        name: the flag or field, for the message.

    Raises:
        UserError: it is an address such as gs://bucket/run, or has the home of an unknown user.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise UserError(
            f"{name}={text} is an address; name a folder of this machine, into which you mount or "
            "copy what is there"
        )
    expanded = os.path.expanduser(text)  # pathlib's would take ./~ for ~
    if expanded.startswith("~"):
        user = text.partition("/")[0]
        raise UserError(f"{name}={text}: {user} is no known home; write the whole path")
    return pathlib.Path(expanded)


def path_to_write(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """The `local_path` of a file that is to be written, once there is something to write.

    Raises:
        UserError: as of `local_path`; it is a folder, or its folder does not exist.
    """
    file = local_path(path, name)
    if file.is_dir():
        raise UserError(f"{name}={file} is a folder; name a file")
    if not file.parent.is_dir():
        raise UserError(f"{name}={file}: there is no folder {file.parent}; create it")
    return file


def check_name(workdir: pathlib.Path) -> None:
    """Refuses the names with which tensorstore would write checkpoints elsewhere, or not at all.

    Raises:
        UserError: the path has a backslash, or bytes that are no UTF-8.
    """
    path = str(workdir.absolute())
    if "\\" in path or any("\ud800" <= character <= "\udfff" for character in path):
        raise UserError(
            f"--workdir={workdir} has a backslash or bytes that are no UTF-8 in its path, where no "
            "checkpoint can be; choose another name (any other character is allowed)"
        )
