"""Trainings that went on after their end: what `--extend` records in `continuations.json`.

A list, oldest first. Each entry says from how many steps and epochs to how many, what the learning
rate does, by which command, and keeps the configuration that was replaced.
"""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments.run_folder.configuration import (
    EXTENDABLE_FIELDS,
    get_config,
    read,
    with_later_fields,
)
from experiments.settings.checks import as_json
from experiments.settings.durations import total_training_steps
from experiments.system.errors import UserError
from experiments.system.files import write_json_atomically

CONTINUATIONS_FILE = "continuations.json"
_REPLACED = "replaced_config"
_OWN = tuple(path.rpartition(".")[2] for path in EXTENDABLE_FIELDS)


def read_continuations(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The entries, without the configurations that were replaced; none of a run that has none.

    One whose `config.json` was not replaced, as its process was killed between, does not count.

    Raises:
        UserError: the file cannot be read.
    """
    entries = _read(workdir)
    return [{k: v for k, v in entry.items() if k != _REPLACED} for entry in entries]


def record_continuation(
    workdir: pathlib.Path, config: ConfigDict, steps_per_epoch: int, command: str
) -> None:
    """Adds an entry if `config` is longer than that of the run; `config.json` is written after it.

    Raises:
        UserError: `config` differs from it in `EXTENDABLE_FIELDS`, and is no longer.
    """
    replaced = get_config(str(workdir))
    if _length(as_json(replaced)) == _length(as_json(config)):
        return
    before, after = (total_training_steps(c.training, steps_per_epoch) for c in (replaced, config))
    if after <= before:
        raise UserError(
            f"--extend makes a training longer: that of --workdir={workdir} has {before} steps, "
            f"and this configuration has {after}; raise config.training.num_epochs (or num_steps, "
            "where it is set)"
        )
    training = config.training
    if training.schedule_when_extended == "hold" and _ends_at_zero(training):
        raise UserError(
            "--extend with config.training.schedule_when_extended='hold' trains on at the last "
            "learning rate, which is 0 with final_learning_rate_factor=0; choose 'restart'"
        )
    entry = {
        "from_steps": before,
        "from_epochs": before / steps_per_epoch,
        "to_steps": after,
        "to_epochs": after / steps_per_epoch,
        "schedule": config.training.schedule_when_extended,
        "command": command,
        _REPLACED: read(workdir),
    }
    write_json_atomically(workdir / CONTINUATIONS_FILE, [*_read(workdir), entry])


def _ends_at_zero(training):
    is_constant = training.learning_rate_schedule == "constant"
    return not is_constant and training.final_learning_rate_factor == 0


def _read(workdir):
    path = workdir / CONTINUATIONS_FILE
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_bytes())
        is_pending = bool(entries) and _length(read(workdir)) == _length(entries[-1][_REPLACED])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); put it back as it was") from error
    return entries[:-1] if is_pending else entries


def _length(config):
    training = with_later_fields(config)["training"]
    return [training[name] for name in _OWN]
