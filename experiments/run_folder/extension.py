"""The configuration file of a run that uses an extension: a part that this project lacks.

It is recorded beside `config.json`. Only the command imports it, from its own --workdir: it is
code. A folder that comes from somebody else must not choose what is run: the file has to be outside
of the folder, the user's own, and have the content that it had in the training.
"""

import hashlib
import importlib.util
import json
import os
import pathlib
import sys

from experiments.system.errors import UserError
from experiments.system.files import write_json_atomically

EXTENSION_FILE = "extension.json"
_FIELD, _HASH = "config", "sha256"


def record_extension(workdir: pathlib.Path, config_argument: str) -> None:
    """Records PATH or PATH:VARIANT, the value of --config, and the content of the file."""
    path, colon, variant = config_argument.partition(":")
    path = os.path.abspath(path)
    content = pathlib.Path(path).read_bytes()
    write_json_atomically(
        workdir / EXTENSION_FILE,
        {_FIELD: f"{path}{colon}{variant}", _HASH: hashlib.sha256(content).hexdigest()},
    )


def recorded_extension(workdir: pathlib.Path) -> str | None:
    """The value of --config that was recorded, or None.

    Raises:
        UserError: the record cannot be read, or the file that it names may not be imported.
    """
    record = workdir / EXTENSION_FILE
    if not record.exists():
        return None
    try:
        recorded = json.loads(record.read_bytes())
        argument, expected = str(recorded[_FIELD]), recorded[_HASH]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{record} cannot be read ({error}); give --config=FILE") from error
    if reason := _why_not(workdir, argument.partition(":")[0], expected):
        raise UserError(
            f"--workdir={workdir} uses parts of {argument}, which is code and {reason}; give "
            f"--config={argument}, or the file where it is now, if you trust it"
        )
    return argument


def import_extension(workdir: pathlib.Path) -> None:
    """Imports the file that the run in `workdir` takes a bijector, say, from, and says so.

    Raises:
        UserError: it may not be imported, or that fails.
    """
    argument = recorded_extension(workdir)
    if argument is None:
        return
    path = argument.partition(":")[0]
    print(f"note: importing {path}, whose parts --workdir={workdir} uses", file=sys.stderr)
    name = f"extension_{pathlib.Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    try:
        assert spec is not None and spec.loader is not None  # of a file that ends with .py
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    except Exception as error:
        raise UserError(f"{path} raised {type(error).__name__} ({error}); mend it") from error


def _why_not(workdir: pathlib.Path, path: str, expected: str) -> str | None:
    """Why the file may not be imported; None: it may."""
    if not os.path.isabs(path):
        return "has no absolute path"
    if pathlib.Path(path).resolve().is_relative_to(workdir.resolve()):
        return "lies in that folder"
    try:
        with open(path, "rb") as file:
            owner, content = os.fstat(file.fileno()).st_uid, file.read()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if owner != os.getuid():
        return "belongs to another user"
    if hashlib.sha256(content).hexdigest() != expected:
        return "has changed since"
    return None
