"""The configuration file of a run that uses an extension: a part that this project lacks.

It is kept beside `config.json`. Only the command imports it, from its own --workdir: it is code.
"""

import json
import os
import pathlib

from experiments.system.errors import UserError
from experiments.system.files import write_json_atomically

EXTENSION_FILE = "extension.json"
_FIELD = "config"


def record_extension(workdir: pathlib.Path, config_argument: str) -> None:
    """Records PATH or PATH:VARIANT, the value of --config, with an absolute path."""
    path, colon, variant = config_argument.partition(":")
    write_json_atomically(
        workdir / EXTENSION_FILE, {_FIELD: f"{os.path.abspath(path)}{colon}{variant}"}
    )


def recorded_extension(workdir: pathlib.Path) -> str | None:
    """What was recorded, or None.

    Raises:
        UserError: it cannot be read, or belongs to another user, whose code is not run.
    """
    path = workdir / EXTENSION_FILE
    if not path.exists():
        return None
    try:
        argument = json.loads(path.read_bytes())[_FIELD]
        is_own = path.stat().st_uid == os.getuid()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); give --config=FILE") from error
    if not is_own:
        raise UserError(
            f"{path} belongs to another user and names code to run, {argument}; if you trust it, "
            f"give --config={argument}"
        )
    return str(argument)
