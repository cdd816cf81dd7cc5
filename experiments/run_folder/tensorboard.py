"""A run for TensorBoard: scalars, and what came out of it."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 10
_OUTCOME = "outcome.tfevents."  # start of a file's name; TensorBoard reads what has `tfevents`


class TensorBoardFile:
    """One event file, written in the thread of its caller, so that errors of the disk are raised.

    tensorboardX's SummaryWriter has a thread that dies of a full disk, and then waits for it for
    ever; of that library only the format is taken.

    Args:
        directory: of all event files of the run; created if missing.
        resume_step: step from which training goes on.
    """

    def __init__(self, directory: Path, resume_step: int) -> None:
        with _without_torch():
            from tensorboardX.proto.event_pb2 import SessionLog
            from tensorboardX.record_writer import RecordWriter

        directory.mkdir(parents=True, exist_ok=True)
        # The suffix keeps two event files of the same second apart.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        # An absolute path, as tensorboardX would take `s3:` at its start for an address.
        path = (directory / f"{name}.from_step_{resume_step}").absolute()
        self._records = RecordWriter(str(path))
        self._write_event(file_version="brain.Event:2")
        # TensorBoard drops what an earlier session logged from this step on.
        self._write_event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars by their tags; they reach the disk within seconds."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write_event(step=step, summary=Summary(value=values))
        if time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self._flush()

    def close(self) -> None:
        """Flushes and closes the file; closing again does nothing."""
        self._records.close()

    def _flush(self) -> None:
        self._records.flush()
        self._last_flush = time.monotonic()

    def _write_event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())


def write_outcome(
    directory: Path,
    step: int,
    fields: Mapping[str, Any],
    figures: Mapping[str, float],
    pictures: Mapping[str, bytes],
) -> None:
    """Writes one event file of a finished run, in place of the one that was there.

    Args:
        directory: of all event files of the run.
        step: of the weights that were evaluated.
        fields: of the configuration, by their paths: the hyperparameters.
        figures: of the evaluation, by their names there, such as `test/nll`.
        pictures: PNG files by their names.
    """
    with _without_torch():
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import hparams

    texts = {name: v if isinstance(v, int | float) else str(v) for name, v in fields.items()}
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
    for name, content in pictures.items():
        width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))
        image = Summary.Image(
            encoded_image_string=content, width=width, height=height, colorspace=3
        )
        values.append(Summary.Value(tag=name, image=image))
    directory.mkdir(parents=True, exist_ok=True)
    for former in directory.glob(f"{_OUTCOME}*"):
        former.unlink()
    name = f"{_OUTCOME}{int(time.time())}.{socket.gethostname()}"
    records = RecordWriter(str((directory / name).absolute()))
    try:
        for event in (
            Event(file_version="brain.Event:2"),
            *(Event(summary=part) for part in hparams(texts, figures)),
            Event(step=step, summary=Summary(value=values)),
        ):
            event.wall_time = time.time()
            records.write(event.SerializeToString())
    finally:
        records.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports PyTorch where it is installed; that takes two seconds."""
    modules: dict[str, Any] = sys.modules  # None: an import raises ImportError
    is_imported = "torch" in modules
    modules.setdefault("torch", None)
    try:
        yield
    finally:
        if not is_imported:
            del modules["torch"]
