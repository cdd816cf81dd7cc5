"""Metrics of a run: a JSON-lines file and TensorBoard scalars."""

from __future__ import annotations

import errno
import gzip
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run_folder.sinks import Sinks
from experiments.run_folder.tensorboard import TensorBoardFile
from experiments.system.errors import UserError
from experiments.system.files import open_atomically, to_json

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"

_RECORD_KEYS = ("step", "epoch", "split")


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the records of `workdir/metrics.jsonl` in the order in which they were logged.

    Of a run that is kept in `results/`, those of `metrics.jsonl.gz`.

    Each record has the keys `step`, `epoch` and `split` and then its metrics; a metric that was
    NaN or infinite is None. The last line is left out if a killed run tore it. Without the file
    the list is empty.

    Raises:
        UserError: a line other than the last one is not a JSON object with a step.
    """
    path = Path(workdir) / METRICS_FILE
    if path.exists():
        content = path.read_bytes()
    elif (packed := path.with_name(f"{METRICS_FILE}.gz")).exists():
        path = packed
        try:
            content = gzip.decompress(packed.read_bytes())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{packed} is damaged ({error}); take it from its source again"
            ) from error
    else:
        return []
    lines = content.rstrip(b"\n").split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and "step" in record:
            records.append(record)
        elif number < len(lines):
            raise UserError(
                f"{path}: line {number} is not a record; only the last line may be torn. "
                "Delete that line to read the others."
            )
    return records


class MetricsLogger(AbstractContextManager):
    """Logs metrics to `workdir/metrics.jsonl` and to TensorBoard in `workdir/tensorboard`.

    Each line of `metrics.jsonl` is a JSON object with `step`, `epoch` and `split`, then the
    metrics. It reaches the operating system before `write` returns, so that a killed run loses
    none. TensorBoard follows within seconds, written by the same thread: an error of the disk, too,
    is raised here.

    A metric that is NaN or infinite is null in `metrics.jsonl`, which stays valid JSON;
    TensorBoard gets the value itself, and marks it on the curve.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, resume_step: int, config: Any = None
    ) -> None:
        """Drops the records that a resumed run will log again, and opens both logs.

        Args:
            workdir: Directory of the run; created if missing.
            resume_step: Step from which training goes on, 0 for a new run. Records of later
                steps are dropped.
            config: Of the experiment, which names further places for the records; None: nowhere.
        """
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        _drop_records_after(resume_step, workdir)
        with ExitStack() as opened:
            self._file = opened.enter_context((workdir / METRICS_FILE).open("ab"))
            self._tensorboard = TensorBoardFile(workdir / TENSORBOARD_DIRECTORY, resume_step)
            opened.callback(self._tensorboard.close)
            self._sinks = None if config is None else Sinks(workdir, config, resume_step)
            opened.pop_all()  # none of it failed: `close` closes them

    def write(
        self,
        step: int,
        epoch: float,
        split: str,
        metrics: Mapping[str, float | Sequence[float] | str],
    ) -> None:
        """Logs `metrics` of one split, such as "train" or "validation".

        Args:
            step: Number of updates done so far.
            epoch: Number of passes over the training set done so far; may be fractional.
            split: Part of the data which the metrics are about.
            metrics: Numbers, or flat sequences of numbers such as the KL of each layer, by name.
                NumPy and JAX arrays of shape [] and [n] count as such. In TensorBoard a number
                is `split/name` and the i-th number of a sequence, from 1, is `split_name/i`. A
                text is in `metrics.jsonl` alone.

        Raises:
            ValueError: A metric has more than one dimension, or is named like one of the keys
                `step`, `epoch` and `split`.
        """
        values = {name: _numbers(name, value) for name, value in metrics.items()}
        record = {"step": int(step), "epoch": float(epoch), "split": split, **values}
        line = json.dumps(to_json(record), allow_nan=False)
        if os.fstat(self._file.fileno()).st_nlink == 0:  # writing would succeed and be lost
            raise FileNotFoundError(errno.ENOENT, "deleted during the run", self._file.name)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

        scalars = _to_scalars(split, values)
        self._tensorboard.write(int(step), scalars)
        if self._sinks is not None:
            self._sinks.write(int(step), float(epoch), split, scalars)

    def close(self) -> None:
        """Flushes and closes all logs; closing again does nothing."""
        try:
            self._file.close()
        finally:
            self._tensorboard.close()
            if self._sinks is not None:
                self._sinks.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop_records_after(step: int, workdir: Path) -> None:
    kept = [record for record in read_metrics(workdir) if record["step"] <= step]
    with open_atomically(workdir / METRICS_FILE) as file:
        file.writelines(json.dumps(record).encode() + b"\n" for record in kept)


def _to_scalars(split: str, values: Mapping[str, float | list[float] | str]) -> dict[str, float]:
    scalars = {}
    for name, value in values.items():
        if isinstance(value, str):
            continue
        if isinstance(value, float):
            scalars[f"{split}/{name}"] = value
            continue
        num_digits = len(str(len(value)))
        for index, item in enumerate(value, start=1):
            scalars[f"{split}_{name}/{index:0{num_digits}d}"] = item
    return scalars


def _numbers(name: str, value: float | Sequence[float] | str) -> float | list[float] | str:
    if name in _RECORD_KEYS:
        raise ValueError(f"a metric cannot be named {name!r}: it is a key of every record")
    if isinstance(value, str):
        return value
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1:
        raise ValueError(
            f"metric {name!r} must be a number or a flat sequence, not of shape {array.shape}"
        )
    return array.tolist()
