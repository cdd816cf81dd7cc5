"""The weights of a run in one small file.

    python -m experiments.main --workdir=runs/digits --mode=export

writes `model.safetensors`: the averaged parameters, and what is known of their training; beside it
the model card README.md. A folder with `config.json` and `model.safetensors` can be evaluated,
sampled from and loaded like the workdir, and `sere_jax.load_pretrained` reads it. Earlier versions
wrote `weights.npz`.
"""

import json
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

from experiments.system.errors import UserError
from experiments.system.files import open_atomically
from sere_jax.pretrained import (
    ABOUT,
    PARAMETERS_FILE,
    nested,
    parameters_as_bytes,
    read_parameters,
)

OLD_FILE = "weights.npz"
_KNOWN_OF_A_RUN = ("step", "train_seconds", "validation_elbo")


def find(workdir: pathlib.Path) -> pathlib.Path | None:
    """The file of exported weights in a folder; None: there is none."""
    paths = (workdir / PARAMETERS_FILE, workdir / OLD_FILE)
    return next((path for path in paths if path.is_file()), None)


def write(
    workdir: pathlib.Path, params: Any, about: dict[str, Any], dtype: str = "float16"
) -> pathlib.Path:
    """Writes the file that `read` reads; returns its path.

    Raises:
        UserError: a parameter exceeds the largest number of `dtype`, 65504 for float16.
    """
    path = workdir / PARAMETERS_FILE
    try:
        data = parameters_as_bytes(params, about, dtype)
    except ValueError as error:
        raise UserError(
            f"{error}; choose --dtype=float32, or keep the checkpoints of {workdir}"
        ) from error
    with open_atomically(path) as file:
        file.write(data)
    return path


def read(path: pathlib.Path, template: Any) -> tuple[Any, dict[str, Any]]:
    """What `write` was given, parameters rounded to the type that it was told.

    Args:
        path: of the file.
        template: parameters of the same structure and shapes.

    Raises:
        UserError: it is damaged, or belongs to another model.
    """
    try:
        reader = read_parameters if path.name == PARAMETERS_FILE else _read_npz
        params, about = reader(path, template)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(about, dict) or not set(_KNOWN_OF_A_RUN) <= set(about):
        raise UserError(
            f"{path} does not say its {', '.join(_KNOWN_OF_A_RUN)}: it was not exported from a "
            "run; export it anew, or load it by sere_jax.load_pretrained"
        )
    return params, about


def _read_npz(path: pathlib.Path, template: Any) -> tuple[Any, Any]:
    try:
        if not zipfile.is_zipfile(path):  # numpy.load would read other formats too
            raise ValueError("it is no zip archive, or not all of one")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(str(arrays.pop(ABOUT)))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); export it anew") from error
    return nested(path, arrays, template), about
