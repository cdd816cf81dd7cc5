"""Scalars of a run for TensorBoard."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 10


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
