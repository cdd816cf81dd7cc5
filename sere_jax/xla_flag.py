"""The flag of XLA that `sere_jax.compilation` explains. It is set without importing JAX."""

import functools
import importlib.util
import mmap
import os
import pathlib

OPTION = "xla_cpu_experimental_ynn_fusion_type"
FLAG = f"--{OPTION}=-reduce"


def set_flag() -> None:
    """Adds `FLAG` to XLA_FLAGS, unless the option is set there or this jaxlib does not know it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if OPTION not in flags and is_known(OPTION):
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()


@functools.cache
def is_known(option: str) -> bool:
    """Whether XLA accepts the option, which aborts the process if it does not know it."""
    name = b"\0" + option.encode() + b"\0"
    for path in _files_of_jaxlib():
        if path.suffix not in (".so", ".dylib", ".pyd", ".dll") or not path.stat().st_size:
            continue
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(name) >= 0:
                return True
    return False


def _files_of_jaxlib() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("jaxlib")
    folders = spec.submodule_search_locations if spec else None
    return [path for folder in folders or () for path in pathlib.Path(folder).iterdir()]
