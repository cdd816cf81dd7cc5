"""The weights of a run in one small file.

    python -m experiments.main --workdir=runs/digits --mode=export

writes `weights.npz`: the averaged parameters by name, float16, and what is known of their
training. A folder with `config.json` and this file can be evaluated, sampled from and loaded like
the workdir.
"""

import json
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np
from flax import traverse_util

from experiments.system.errors import UserError
from experiments.system.files import open_atomically

WEIGHTS_FILE = "weights.npz"
DTYPE = np.dtype(np.float16)
_ABOUT = "about"


def write(path: pathlib.Path, params: Any, about: dict[str, Any]) -> None:
    """Writes the file that `read` reads.

    Raises:
        UserError: a parameter exceeds the largest float16, 65504.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for name, values in flat.items():
        largest = float(np.max(np.abs(values), initial=0.0))
        if not largest <= float(np.finfo(DTYPE).max):
            raise UserError(
                f"{name} holds {largest:.4g}, which is beyond {DTYPE}; keep checkpoints"
            )
    arrays: dict[str, Any] = {
        name: np.asarray(values).astype(DTYPE) for name, values in flat.items()
    }
    arrays[_ABOUT] = np.array(json.dumps(about))
    with open_atomically(path) as file:
        np.savez_compressed(file, **arrays)


def read(path: pathlib.Path, template: Any) -> tuple[Any, dict[str, Any]]:
    """What `write` was given, parameters rounded to float16.

    Args:
        path: of the file.
        template: parameters of the same structure and shapes.

    Raises:
        UserError: it is damaged, or belongs to another model.
    """
    try:
        if not zipfile.is_zipfile(path):  # numpy.load would read other formats too
            raise ValueError("it is no zip archive, or not all of one")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(str(arrays.pop(_ABOUT)))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); export it anew") from error
    shapes = {
        name: leaf.shape for name, leaf in traverse_util.flatten_dict(template, sep="/").items()
    }
    found = {name: values.shape for name, values in arrays.items()}
    if found != shapes:
        name = min(name for name in shapes.keys() | found if shapes.get(name) != found.get(name))
        raise UserError(
            f"{path} belongs to another model: {name} has the shape {found.get(name)} instead of "
            f"{shapes.get(name)}; take the config.json that was exported with it"
        )
    return traverse_util.unflatten_dict(
        {name: values.astype(np.float32) for name, values in arrays.items()}, sep="/"
    ), about
