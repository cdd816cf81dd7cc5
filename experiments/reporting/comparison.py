"""Several runs beside each other: in which fields they differ, and what came out.

They may be under way, finished, or kept in `results/`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.run_folder import RESULTS_FILE
from experiments.run_folder.configuration import (
    FIELDS_WITHOUT_EFFECT,
    read,
    with_later_fields,
)
from experiments.run_folder.metrics import read_metrics
from experiments.settings.checks import flat
from experiments.system.errors import UserError

OUTCOMES = (
    "epochs",
    "best validation ELBO",
    "-log p(x), nats",
    "ELBO, nats",
    "bits/dim",
    "minutes",
)
_NONE = "-"
_MOST_COLUMNS = 14
# In which images they differ, or in what is modelled of them.
_OF_IMAGES = (
    "dataset.name",
    "model.data_shape",
    "model.data_layer",
    "evaluation.split",
    "evaluation.num_examples",
)


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """What is known of one run."""

    name: str
    config: Mapping[str, Any]  # values of fields by their paths; those of the last evaluation
    metrics: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]  # empty before the first evaluation


def read_runs(folders: Sequence[pathlib.Path]) -> list[ComparedRun]:
    """The runs in these folders, which are only read; named after them.

    Raises:
        UserError: one of them holds no run, or its files cannot be read.
    """
    names = [folder.resolve().name for folder in folders]
    return [
        _read(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def _read(folder, name):
    try:
        config = flat(with_later_fields(read(folder)))
    except ValueError as error:
        raise UserError(
            f"{folder} is no run, as it has no config.json that can be read; name workdirs, such "
            "as runs/digits, or folders of results/"
        ) from error
    path = folder / RESULTS_FILE
    try:
        results = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); --mode=evaluate writes it") from error
    config |= flat({"evaluation": results.get("evaluation", {})})
    return ComparedRun(name, config, read_metrics(folder), results)


def rows(runs: Sequence[ComparedRun]) -> tuple[list[str], list[list[str]]]:
    """The columns of a table, and a row of each run in the order given.

    First come the fields in which any two differ, by their last names where these are clear.
    """
    fields = [field for field in _all_fields(runs) if len(set(_values(runs, field))) > 1]
    last_names = [field.rpartition(".")[2] for field in fields]
    shown = [
        last if last_names.count(last) == 1 else field
        for field, last in zip(fields, last_names, strict=True)
    ]
    columns = ["run", *shown, *OUTCOMES]
    return columns, [
        [run.name, *(_values([run], field)[0] for field in fields), *_outcome(run)] for run in runs
    ]


def on_its_side(
    columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """The table, with a column for each run where it would otherwise be too wide to read."""
    if len(columns) <= _MOST_COLUMNS:
        return list(columns), [list(row) for row in cells]
    first, *others = zip(columns, *cells, strict=True)
    return list(first), [list(row) for row in others]


def notes(runs: Sequence[ComparedRun]) -> list[str]:
    """What makes figures of different runs not comparable."""
    differ = [name for name in _OF_IMAGES if len(set(_values(runs, name))) > 1]
    if not differ:
        return []
    return [f"note: {', '.join(differ)} differ; nats of different images do not compare"]


def _all_fields(runs):
    paths = dict.fromkeys(path for run in runs for path in run.config)
    return [path for path in paths if not path.startswith(FIELDS_WITHOUT_EFFECT)]


def _values(runs, field):
    return [str(run.config.get(field, _NONE)) for run in runs]


def _outcome(run):
    elbos = [
        (record["elbo"], record["epoch"])
        for record in run.metrics
        if record.get("split") == "validation" and record.get("elbo") is not None
    ]
    best = "{:.2f} (epoch {:.4g})".format(*max(elbos)) if elbos else _NONE
    results = run.results
    seconds = results.get("train_seconds")
    return [
        _epochs(run),
        best,
        f"{results['nll']:.2f} ± {results['nll_stderr']:.2f}" if "nll" in results else _NONE,
        f"{results['elbo']:.2f}" if "elbo" in results else _NONE,
        f"{results['bits_per_dim']:.4f}" if "bits_per_dim" in results else _NONE,
        _NONE if seconds is None else f"{seconds / 60:.1f}",
    ]


def _epochs(run):
    """'30', or '12.5 of 30' of a run that is under way or was stopped."""
    last: Mapping[str, Any] = max(run.metrics, key=lambda record: record["step"], default={})
    if not last.get("epoch"):
        return f"{run.results['epoch']:.4g}" if "epoch" in run.results else "0"
    steps_per_epoch = last["step"] / last["epoch"]
    total = run.config["training.num_epochs"]
    if num_steps := run.config["training.num_steps"]:
        total = num_steps / steps_per_epoch
    is_done = last["epoch"] >= total or math.isclose(last["epoch"], total)
    return f"{last['epoch']:.4g}" + ("" if is_done else f" of {total:.4g}")


def aligned(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns also stand below each other."""
    lines = [columns, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    ]
    return [padded[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *padded[1:]]
