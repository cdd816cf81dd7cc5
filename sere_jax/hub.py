"""Models on the Hugging Face hub, which needs the extra `hub`."""

import importlib
import os
import pathlib
import re
from typing import Any

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_name(folder: str | os.PathLike[str]) -> bool:
    """Whether it is `owner/name`, and no folder here."""
    return isinstance(folder, str) and bool(_NAME.fullmatch(folder)) and not os.path.exists(folder)


def download(name: str, files: tuple[str, ...], revision: str | None) -> pathlib.Path:
    """The folder of the hub's cache with these files of the repository `name`, and no others.

    Raises:
        FileNotFoundError: the extra is not installed, the hub does not answer, or it has no such
            repository or revision.
    """
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise FileNotFoundError(
            f"there is no folder {name} here, and the Hugging Face hub needs a package that is not "
            "installed; pip install huggingface_hub, or give the path of a folder"
        ) from error
    try:
        return pathlib.Path(hub.snapshot_download(name, revision=revision, allow_patterns=[*files]))
    except Exception as error:  # its versions raise those of several libraries
        lines = str(error).strip().splitlines() or [""]
        raise FileNotFoundError(
            f"there is no folder {name} here, and the Hugging Face hub did not give revision "
            f"{revision or 'main'} of it ({type(error).__name__}: {lines[0]}); check the name and "
            "the connection, or give the path of a folder"
        ) from error
