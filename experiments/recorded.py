"""The configuration that a workdir records, as a configuration file of its own.

`--mode=evaluate`, `sample` and `report` use it where --config is left out:

    python -m experiments.main --workdir=runs/digits --mode=sample
"""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

CONFIG_FILE = "config.json"


def get_config(workdir: str) -> ConfigDict:
    """The configuration of the run in `workdir`.

    Raises:
        ValueError: there is none.
    """
    path = pathlib.Path(workdir) / CONFIG_FILE
    try:
        recorded = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"there is no run in --workdir={workdir}; train first") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); choose another --workdir") from error
    if not isinstance(recorded, dict):
        raise ValueError(f"{path} holds no configuration; choose another --workdir")
    return ConfigDict(_with_tuples(recorded)).lock()


def _with_tuples(value: Any) -> Any:
    """JSON has lists where configurations have tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(field) for name, field in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value
