"""The configuration that a workdir records, as a configuration file of its own.

`--mode=evaluate`, `sample`, `report` and `export` use it where --config is left out:

    python -m experiments.main --workdir=runs/digits --mode=sample
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.settings.fields import defaults

CONFIG_FILE = "config.json"
# Fields that do not change what was trained; --mode=evaluate and relaunches may set them anew.
# The place of the images is among them: a hash of their pixels says which they are.
FREE_FIELDS = (
    "dataset.bad_files",
    "dataset.data_dir",
    "dataset.download",
    "dataset.path",
    "dataset.placement",
    "evaluation",
    "sampling",
    "paper",
    "training.keep_checkpoints",
    "training.patience",
    "training.sinks",
    "training.steps_per_dispatch",
)
# Those that change no figure either.
FIELDS_WITHOUT_EFFECT = tuple(
    field for field in FREE_FIELDS if field not in ("evaluation", "training.patience")
)
# What `--extend` may change.
EXTENDABLE_FIELDS = (
    "training.num_epochs",
    "training.num_steps",
    "training.schedule_when_extended",
)


def get_config(workdir: str) -> ConfigDict:
    """The configuration of the run in `workdir`.

    Raises:
        ValueError: there is none.
    """
    recorded = with_later_fields(read(pathlib.Path(workdir)))
    return ConfigDict(_with_tuples(recorded)).lock()


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """The same as it is in the file.

    Raises:
        ValueError: there is none.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        raise ValueError(f"there is no run in --workdir={workdir}; train first (--mode=train)")
    try:
        recorded = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not JSON ({error}); choose another --workdir") from error
    if not isinstance(recorded, dict):
        raise ValueError(f"{path} holds no configuration; choose another --workdir")
    return recorded


def with_later_fields(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with the fields that were declared since.

    They take their defaults: a field that is added to a section leaves all as it was by default.
    """
    complete = dict(recorded)
    for name, section in json.loads(json.dumps(defaults())).items():
        if isinstance(complete.get(name), Mapping):
            complete[name] = section | complete[name]
    return complete


def _with_tuples(value: Any) -> Any:
    """JSON has lists where configurations have tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(field) for name, field in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value
