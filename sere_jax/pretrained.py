"""A model and its parameters in a folder: `config.json`, `model.safetensors` and a model card.

Only this file, `model_card.py` and `hub.py` read and write models. Loading runs no code: the folder
holds arrays and JSON. A model that uses an extension needs the extension's file imported before.
"""

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from sere_jax import hub
from sere_jax.config import ConfigError
from sere_jax.functions import Params, create_model, init
from sere_jax.model import LatentVariableModel
from sere_jax.model_card import CARD_FILE, may_replace, model_card
from sere_jax.rules import STORED_AS

CONFIG_FILE = "config.json"
PARAMETERS_FILE = "model.safetensors"
ABOUT, CONFIG, CHECKSUM = "about", "config", "checksum"  # keys of its metadata


def save_pretrained(
    folder: str | os.PathLike[str],
    model: LatentVariableModel,
    params: Params,
    about: Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
) -> pathlib.Path:
    """Writes a model to a folder that `load_pretrained` reads, with a model card.

    The files are `config.json` and `model.safetensors`. The card, `README.md`, is what the Hugging
    Face hub shows: two lines of Python that load the model, and `about` as a table.

    Args:
        folder: made if it is missing. Files of the first two names in it are replaced, and a model
            card that this function wrote; another `README.md` stays.
        model: from `create_model`.
        params: its parameters.
        about: JSON values by name to keep with them, such as how they were trained. The hub knows
            "licence", say "apache-2.0".
        dtype: "float32"; "float16" or "bfloat16" for half the size.

    Returns:
        The folder.

    Raises:
        ValueError: `params` are not those of the model, `dtype` is another one, a parameter is
            not finite or too large for it, or the folder is that of a run.
        TypeError: `about` holds something that has no JSON form.
    """
    folder = pathlib.Path(folder)
    _check_shapes("params", _flat(params), _template(model), "sere_jax.init makes the model's own")
    fields = json.loads(json.dumps({"model": dataclasses.asdict(model.config)}))
    parameters = parameters_as_bytes(params, about or {}, dtype, fields)
    _check_is_not_of_a_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / PARAMETERS_FILE, parameters)
    _write(folder / CONFIG_FILE, json.dumps(fields, indent=2).encode() + b"\n")
    if may_replace(folder):
        _write(folder / CARD_FILE, model_card(fields["model"], about or {}, dtype).encode())
    return folder


def load_pretrained(
    folder: str | os.PathLike[str], *, revision: str | None = None
) -> tuple[LatentVariableModel, Params]:
    """The model and its parameters, float32, from a folder of `save_pretrained`.

    Also from the folder of a run with exported weights, and from the Hugging Face hub, whose client
    `pip install huggingface_hub` installs. No code of the folder runs.

    Args:
        folder: path of a folder; or `owner/name` of a repository on the hub, if there is no folder
            of this path.
        revision: branch, tag or commit on the hub; None: its main branch.

    Raises:
        FileNotFoundError: the folder or one of the two files is missing, here and on the hub; the
            hub does not answer, or its client is not installed.
        ValueError: a file is damaged, or the parameters are those of another model.
        ConfigError: the model needs an extension whose file is not imported.
    """
    if hub.is_hub_name(folder):
        folder = hub.download(str(folder), (CONFIG_FILE, PARAMETERS_FILE), revision)
    folder = pathlib.Path(folder)
    for name in (CONFIG_FILE, PARAMETERS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"there is no {folder / name}; sere_jax.save_pretrained writes it, or for a run "
                "python -m experiments.main --workdir=... --mode=export"
            )
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        model = create_model({"model": config["model"]})
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} holds no model ({error!r})") from error
    params, _ = read_parameters(folder / PARAMETERS_FILE, _template(model), config)
    return model, jax.tree.map(jnp.asarray, params)


def parameters_as_bytes(
    params: Params,
    about: Mapping[str, Any],
    dtype: str,
    config: Mapping[str, Any] | None = None,
) -> bytes:
    """The content of `model.safetensors`.

    Args:
        params: of a model.
        about: JSON values to keep with them.
        dtype: one of `STORED_AS`.
        config: what `config.json` will hold, if it is written with them; else None.

    Raises:
        ValueError: `dtype` is not one of `STORED_AS`, or a parameter is not finite in it.
        TypeError: `about` holds something that has no JSON form.
    """
    if dtype not in STORED_AS:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(STORED_AS)}")
    arrays = {name: np.asarray(values, np.float32) for name, values in _flat(params).items()}
    for name, values in arrays.items():
        largest = float(np.max(np.abs(values), initial=0.0))
        if not largest <= float(jnp.finfo(dtype).max):
            raise ValueError(f"{name} holds {largest:.4g}, which {dtype} cannot represent")
    arrays = {
        name: np.asarray(values, jnp.dtype(dtype), order="C") for name, values in arrays.items()
    }
    metadata = {ABOUT: json.dumps(about)}
    if config is not None:
        metadata[CONFIG] = json.dumps(config)
    metadata[CHECKSUM] = _checksum(arrays, metadata)
    return safetensors.numpy.save(arrays, metadata)


def read_parameters(
    path: pathlib.Path, template: Params, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of a `model.safetensors` as float32 host arrays, and what is said about them.

    Args:
        path: of the file.
        template: parameters, or their shapes, of the same structure.
        config: what the `config.json` beside it holds; None: it is not looked at.

    Raises:
        ValueError: the file is damaged, its parameters are those of another model, or it was
            written with another `config.json`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            about = json.loads(metadata.get(ABOUT, "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # Files of other programs have neither of these.
        is_ours = ABOUT in metadata or CHECKSUM in metadata
        if is_ours and metadata.get(CHECKSUM) != _checksum(arrays, metadata):
            raise ValueError("its checksum is wrong")
        for name, values in arrays.items():
            if values.dtype.kind not in "fV" or not np.isfinite(values.astype(np.float32)).all():
                raise ValueError(f"{name} holds values that are no finite numbers")
    except (OSError, safetensors.SafetensorError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); save or export it anew") from error
    params = nested(path, arrays, template)
    if config is not None and not _agree(json.loads(metadata.get(CONFIG, "{}")), config):
        raise ValueError(f"{path} was not written with the {CONFIG_FILE} beside it; save both anew")
    return params, about


def nested(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], template: Params
) -> dict[str, Any]:
    """The arrays of the file at `path`, by flat name, as float32 parameters like `template`.

    Raises:
        ValueError: they are those of another model.
    """
    _check_shapes(str(path), arrays, template, "take the config.json that was written with it")
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def _flat(params: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def _agree(written: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two configurations have the same values where both have a field of the model."""
    ours, theirs = written.get("model", {}), found["model"]
    return all(value == theirs[name] for name, value in ours.items() if name in theirs)


def _check_is_not_of_a_run(folder: pathlib.Path) -> None:
    path = folder / CONFIG_FILE
    if path.exists() and b'"training"' in path.read_bytes():
        raise ValueError(
            f"{folder} is the folder of a run, whose {path.name} has more than a model; choose "
            "another folder, or python -m experiments.main --workdir=... --mode=export"
        )


def _checksum(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Of all that the file holds but the checksum itself."""
    checksum = 0
    for key in (ABOUT, CONFIG):
        checksum = zlib.crc32(f"{key}={metadata.get(key)}".encode(), checksum)
    for name in sorted(arrays):
        values = arrays[name]
        checksum = zlib.crc32(f"{name} {values.dtype} {values.shape}".encode(), checksum)
        checksum = zlib.crc32(values.tobytes(), checksum)
    return f"crc32:{checksum:08x}"


def _template(model: LatentVariableModel) -> Params:
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def _check_shapes(subject: str, arrays: Mapping[str, Any], template: Params, way_out: str) -> None:
    expected = {name: leaf.shape for name, leaf in _flat(template).items()}
    found = {name: np.shape(values) for name, values in arrays.items()}
    if found == expected:
        return
    if missing := expected.keys() - found:
        difference = f"they lack {min(missing)}"
    elif besides := found.keys() - expected:
        difference = f"they have {min(besides)} besides"
    else:
        name = min(name for name, shape in expected.items() if found[name] != shape)
        difference = f"{name} has the shape {found[name]} instead of {expected[name]}"
    raise ValueError(f"{subject} belong to another model: {difference}; {way_out}")


def _write(path: pathlib.Path, data: bytes) -> None:
    """So that a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
