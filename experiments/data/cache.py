"""The cache of decoded images: files for each split of each data set; of labels of TFDS too.

It lies in `$XDG_CACHE_HOME/sere_jax` (`~/.cache/sere_jax`) and may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.data.stored import Images, StoredImages, pieces
from experiments.system.files import (
    open_atomically,
    remove_temporary_files,
    write_json_atomically,
)
from experiments.system.paths import local_path

_CACHE_FORMAT = 1
_SECONDS_OF_A_DAY = 86400.0

Notes = list[Any]  # JSON values
Pieces = Iterator[tuple[np.ndarray, Notes]]


def cached(builder: Any, split: str, feature: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """The decoded images of a split: from the cache if the source files are the same, else decoded.

    The feature of that name holds the image, or the label, and the builder is one of TFDS.
    """
    cache_file = _cache_file(builder, f"{split}-label" if feature == "label" else split)
    identity = _identity(builder, split, feature)
    images = _read(cache_file, identity)
    if images is None:
        images = decode()
        _write(cache_file, identity, images)
    return images


def _cache_file(builder: Any, split: str) -> pathlib.Path:
    return _file(f"{builder.info.full_name}-{split}", builder.data_path, "npz")


def _file(name: str, source: str | os.PathLike[str], suffix: str) -> pathlib.Path:
    cache_home = local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
    source = hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
    full_name = re.sub(r"[^\w.]+", "-", name)
    return cache_home / "sere_jax" / f"{full_name}-{source}.{suffix}"


def _identity(builder: Any, split: str, feature: str) -> str:
    """Everything the decoded images depend on; it differs when a source file was replaced."""
    files = []
    for path in sorted(pathlib.Path(builder.data_path).iterdir()):
        status = path.stat()
        # The time of the last change of state cannot be set back, that of the contents can.
        files.append((str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return json.dumps([_CACHE_FORMAT, builder.info.full_name, split, feature, files])


def _read(cache_file: pathlib.Path, identity: str) -> np.ndarray | None:
    try:
        # The zip format carries a checksum, which is verified on reading.
        with cache_file.open("rb") as file, np.load(file, allow_pickle=False) as content:
            if str(content["identity"]) == identity:
                return content["images"]
    except Exception:  # Whatever is wrong with a cache file, it is rebuilt.
        return None
    return None


def _write(cache_file: pathlib.Path, identity: str, images: np.ndarray) -> None:
    """A cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        _open_folder(cache_file.parent)
        with open_atomically(cache_file) as file:
            np.savez(file, identity=np.array(identity), images=images)


def _open_folder(folder: pathlib.Path) -> None:
    """Creates it, or removes what killed processes left there."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder, unchanged_seconds=_SECONDS_OF_A_DAY)


def cached_pieces(
    name: str, source: pathlib.Path, identity: Any, decode: Callable[[], Pieces]
) -> tuple[Images, Notes]:
    """Images that are decoded a piece at a time, all of them in a file of the cache, and the notes.

    Where the cache cannot be written they are in memory.

    Args:
        name: of the images, and `source`, where they come from.
        source: see there.
        identity: a JSON value on which the images depend.
        decode: () -> pieces uint8 [num, height, width, channels], each with its notes.
    """
    values = _file(name, source, "raw")
    digest = hashlib.sha256(json.dumps([_CACHE_FORMAT, identity]).encode()).hexdigest()
    found = _read_pieces(values, digest)
    if found is not None:
        return found
    try:
        return _write_pieces(values, digest, decode())
    except OSError:
        decoded, notes = zip(*decode(), strict=True)
        return np.concatenate(decoded), [note for of_piece in notes for note in of_piece]


def _read_pieces(values: pathlib.Path, digest: str) -> tuple[Images, Notes] | None:
    try:
        record = json.loads(values.with_suffix(".json").read_text())
        images = StoredImages(values, 0, tuple(record["shape"]))
        checksum = 0
        for piece in pieces(images):
            checksum = zlib.crc32(piece.data, checksum)
        is_same = (record["identity"], record["crc32"]) == (digest, checksum)
        return (images, record["notes"]) if is_same else None
    except Exception:  # Whatever is wrong with a cache file, it is rebuilt.
        return None


def _write_pieces(values: pathlib.Path, digest: str, decoded: Pieces) -> tuple[Images, Notes]:
    num, checksum, notes = 0, 0, []
    _open_folder(values.parent)
    with open_atomically(values) as file:
        for piece, of_piece in decoded:
            file.write(piece.data)
            num, checksum = num + len(piece), zlib.crc32(piece.data, checksum)
            notes += of_piece
            shape = (num, *piece.shape[1:])
    record = {"identity": digest, "shape": shape, "crc32": checksum, "notes": notes}
    write_json_atomically(values.with_suffix(".json"), record)
    return StoredImages(values, 0, shape), notes
