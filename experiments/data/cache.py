"""The cache of decoded images: one file for each split of each prepared data set; of labels too.

It lies in `$XDG_CACHE_HOME/sere_jax` (`~/.cache/sere_jax`) and may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.system.files import open_atomically
from experiments.system.paths import local_path

_CACHE_FORMAT = 1


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
    cache_home = local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
    source = hashlib.sha256(os.fsencode(builder.data_path)).hexdigest()[:16]
    full_name = re.sub(r"[^\w.]+", "-", f"{builder.info.full_name}-{split}")
    return cache_home / "sere_jax" / f"{full_name}-{source}.npz"


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
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(cache_file) as file:
            np.savez(file, identity=np.array(identity), images=images)
