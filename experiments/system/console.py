"""stdout and stderr that no terminal, pipe or locale turns into a failure of the program."""

import io
import os
import sys


class _Output(io.FileIO):
    """Drops what nobody reads any more, as in `... | head -1`."""

    def write(self, data):
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def make_robust() -> None:
    """Replaces both by streams that outlive their readers and escape what they cannot encode."""
    sys.stdout, sys.stderr = _robust(sys.stdout, 1), _robust(sys.stderr, 2)


def _robust(stream, descriptor):
    if stream is None:  # closed by `>&-`
        return open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )
