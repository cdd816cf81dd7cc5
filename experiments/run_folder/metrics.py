"""Metrics of a run: a JSON-lines file, TensorBoard scalars and the progress bar."""

from __future__ import annotations

import errno
import gzip
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.system.errors import UserError
from experiments.system.files import open_atomically, to_json

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"

_RECORD_KEYS = ("step", "epoch", "split")
_TENSORBOARD_FLUSH_SECONDS = 10
_TERMINAL_REFRESH_SECONDS = 0.2
_LOG_FILE_REFRESH_SECONDS = 10.0


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
        content = gzip.decompress(packed.read_bytes())
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


class MetricsLogger:
    """Logs metrics to `workdir/metrics.jsonl` and to TensorBoard in `workdir/tensorboard`.

    Each line of `metrics.jsonl` is a JSON object with `step`, `epoch` and `split`, then the
    metrics. It reaches the operating system before `write` returns, so that a killed run loses
    none. TensorBoard follows within seconds, written by the same thread: an error of the disk, too,
    is raised here.

    A metric that is NaN or infinite is null in `metrics.jsonl`, which stays valid JSON;
    TensorBoard gets the value itself, and marks it on the curve.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, resume_step: int, write: bool = True
    ) -> None:
        """Drops the records that a resumed run will log again, and opens both logs.

        Args:
            workdir: Directory of the run; created if missing.
            resume_step: Step from which training goes on, 0 for a new run. Records of later
                steps are dropped.
            write: False on every host but the first: nothing is then read, created or written.
        """
        self._enabled = write
        if not write:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        _drop_records_after(resume_step, workdir)
        self._file = (workdir / METRICS_FILE).open("ab")
        try:
            self._tensorboard = _TensorBoardFile(workdir / TENSORBOARD_DIRECTORY, resume_step)
        except OSError:
            self._file.close()
            raise

    def write(
        self,
        step: int,
        epoch: float,
        split: str,
        metrics: Mapping[str, float | Sequence[float]],
    ) -> None:
        """Logs `metrics` of one split, such as "train" or "validation".

        Args:
            step: Number of updates done so far.
            epoch: Number of passes over the training set done so far; may be fractional.
            split: Part of the data which the metrics are about.
            metrics: Numbers, or flat sequences of numbers such as the KL of each layer, by name.
                NumPy and JAX arrays of shape [] and [n] count as such. In TensorBoard a number
                is `split/name` and the i-th number of a sequence, from 1, is `split_name/i`.

        Raises:
            ValueError: A metric has more than one dimension, or is named like one of the keys
                `step`, `epoch` and `split`.
        """
        if not self._enabled:
            return
        values = {name: _numbers(name, value) for name, value in metrics.items()}
        record = {"step": int(step), "epoch": float(epoch), "split": split, **values}
        line = json.dumps(to_json(record), allow_nan=False)
        if os.fstat(self._file.fileno()).st_nlink == 0:  # writing would succeed and be lost
            raise FileNotFoundError(errno.ENOENT, "deleted during the run", self._file.name)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

        scalars = {}
        for name, value in values.items():
            if isinstance(value, float):
                scalars[f"{split}/{name}"] = value
                continue
            num_digits = len(str(len(value)))
            for index, item in enumerate(value, start=1):
                scalars[f"{split}_{name}/{index:0{num_digits}d}"] = item
        self._tensorboard.write(int(step), scalars)

    def close(self) -> None:
        """Flushes and closes both logs; closing again does nothing."""
        if self._enabled:
            try:
                self._file.close()
            finally:
                self._tensorboard.close()

    def __enter__(self) -> MetricsLogger:
        """Returns the logger itself."""
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the logger."""
        self.close()


class _TensorBoardFile:
    """An event file: TFRecords, each a length, its CRC, an event and its CRC.

    tensorboardX's own writer has a thread that dies of a full disk, and then waits for it for ever.
    """

    def __init__(self, directory: Path, resume_step: int) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        # The suffix keeps two event files of the same second apart.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._file = (directory / f"{name}.from_step_{resume_step}").open("wb")
        self._last_flush = time.monotonic()
        self._write_event(file_version="brain.Event:2")
        # TensorBoard drops what an earlier session logged from this step on.
        self._write_event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._file.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write_event(step=step, summary=Summary(value=values))
        if time.monotonic() - self._last_flush > _TENSORBOARD_FLUSH_SECONDS:
            self._file.flush()
            self._last_flush = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def _write_event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        for part in (length, event):
            self._file.write(part + struct.pack("<I", masked_crc32c(part)))


def progress_bar(
    total: int,
    initial: int,
    description: str,
    disable: bool | None = None,
    unit: str = " steps",
) -> tqdm:
    """Makes a tqdm bar of training steps on stderr; call its `update` after each step.

    Where stderr is no terminal, such as the log of a batch job, the bar is printed once every
    10 seconds. Give `refresh=False` to `set_postfix`, which otherwise prints at every call.

    Args:
        total: Number of steps of the whole run.
        initial: Number of steps done before, in the run that is resumed.
        description: Text in front of the bar.
        disable: Whether to print nothing; None means no.
        unit: What is counted.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        disable=bool(disable),
        file=sys.stderr,
        unit=unit,
        dynamic_ncols=on_terminal,
        mininterval=_TERMINAL_REFRESH_SECONDS if on_terminal else _LOG_FILE_REFRESH_SECONDS,
    )


def _drop_records_after(step: int, workdir: Path) -> None:
    kept = [record for record in read_metrics(workdir) if record["step"] <= step]
    with open_atomically(workdir / METRICS_FILE) as file:
        file.writelines(json.dumps(record).encode() + b"\n" for record in kept)


def _numbers(name: str, value: float | Sequence[float]) -> float | list[float]:
    if name in _RECORD_KEYS:
        raise ValueError(f"a metric cannot be named {name!r}: it is a key of every record")
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1:
        raise ValueError(
            f"metric {name!r} must be a number or a flat sequence, not of shape {array.shape}"
        )
    numbers: float | list[float] = array.tolist()
    return numbers
