"""Files that appear whole or not at all, and JSON."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_TEMPORARY = re.compile(r"\..+\.[0-9]+\.tmp")


@contextmanager
def open_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a binary file that appears at `path`, whole and synced, when the block ends.

    If the block raises, whatever was at `path` before stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # as `_TEMPORARY` says
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporary_files(
    directory: str | os.PathLike[str], *, unchanged_seconds: float = 0.0
) -> None:
    """Removes what `open_atomically` leaves in `directory` if its process is killed.

    Where other processes may write there, `unchanged_seconds` tells their files from those left.
    """
    for path in Path(directory).glob(".*.tmp"):
        with suppress(FileNotFoundError):
            is_left = time.time() - path.stat().st_mtime >= unchanged_seconds
            if _TEMPORARY.fullmatch(path.name) and path.is_file() and is_left:
                path.unlink()


def write_json_atomically(path: str | os.PathLike[str], obj: Any) -> Path:
    """Writes `obj` as indented JSON, so that a reader sees the old file or the new one.

    NumPy and JAX scalars and arrays become numbers and lists, paths become strings, and NaN and
    the infinities, which JSON lacks, become null.

    Returns:
        `path`.

    Raises:
        TypeError: `obj` holds something that has no JSON form.
    """
    text = json.dumps(to_json(obj), indent=2, allow_nan=False)
    with open_atomically(path) as file:
        file.write(text.encode() + b"\n")
    return Path(path)


def to_json(value: Any) -> Any:
    """`value` in types that JSON has; NaN and the infinities, which it lacks, become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    return value
