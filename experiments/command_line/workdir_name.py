"""The workdir of a run where none is given, named after what was overridden."""

import hashlib
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.command_line.flags import overrides
from experiments.run_folder.configuration import EXTENDABLE_FIELDS, FREE_FIELDS
from experiments.settings.fields import SECTIONS
from sere_jax.rules import settings_of

LONGEST_NAME = 100
# A relaunch may set these anew, and `--extend` those of the length: the run is the same.
_UNNAMED = (*FREE_FIELDS, *EXTENDABLE_FIELDS)
_SECTIONS_WITH = Counter(name for fields in SECTIONS.values() for name in settings_of(fields))


def default_workdir(
    config_argument: str, overridden: Mapping[str, Any], argv: Sequence[str] = ()
) -> pathlib.Path:
    """runs/NAME, runs/NAME_VARIANT, runs/NAME-FIELD=VALUE-FIELD=VALUE.

    Args:
        config_argument: configs/NAME.py or configs/NAME.py:VARIANT.
        overridden: values of the fields that the command line sets, by their paths, in the order
            in which they were given. Those that a relaunch may change are not part of the name.
        argv: the command line, from which values are taken as they were written.
    """
    path, _, variant = config_argument.partition(":")
    stem = pathlib.Path(path).stem
    written = {name: text for name, text in overrides(argv) if text}
    parts = [f"{stem}_{variant}" if variant else stem]
    parts += [
        f"{_short(name)}={written.get(name, overridden[name])}"
        for name in dict.fromkeys([*(n for n in written if n in overridden), *overridden])
        if not any(name == free or name.startswith(f"{free}.") for free in _UNNAMED)
    ]
    return pathlib.Path("runs") / _file_name(parts)


def _short(path):
    name = path.rpartition(".")[2]
    return name if _SECTIONS_WITH[name] == 1 else path


def _file_name(parts):
    name = "-".join(parts)
    if len(parts) == 1:
        return name
    safe = re.sub(r"[^A-Za-z0-9._=+,%()-]", "_", name)
    if safe == name.replace(" ", "_") and len(safe) <= LONGEST_NAME:
        return safe
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{safe[: LONGEST_NAME - 9]}-{digest}"
