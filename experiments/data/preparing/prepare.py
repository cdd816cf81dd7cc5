"""Preparing a data set: its source files downloaded or named, then written as TFDS does."""

import contextlib
import importlib.util
import pathlib
import sys
from typing import Any

from experiments.data.preparing.builder import (
    PreparationImpossibleError,
    find_builder,
    is_prepared,
    quiet_logs,
    summary,
)
from experiments.data.preparing.download import (
    download_source_files,
    require_reachable,
    verify_source_files,
)
from experiments.data.preparing.readers import SOURCE_READERS, tensorflow_free_builder
from experiments.system.errors import UserError
from experiments.system.paths import local_path


@quiet_logs()
def prepare(name: str, data_dir: str = "", manual_dir: str | None = None) -> pathlib.Path:
    """Downloads and prepares a TFDS data set; does nothing if this was done before.

    Progress is shown on stderr. Killed midway, it leaves nothing that is taken for prepared, and
    what was downloaded and verified is not downloaded again.

    Args:
      name: Name of the data set, `name[/config][:version]`.
      data_dir: Where TFDS data sets are stored; see `resolve_data_dir`.
      manual_dir: A directory with the source files, downloaded before. Only an official builder
        that runs with TensorFlow downloads what it does not find there.

    Returns:
      The directory of the prepared data set.

    Raises:
      PreparationImpossibleError: If the host of the source files does not answer within 3 seconds,
        or TensorFlow is needed and not installed.
      UserError: If a name, a source file, a checksum or the directory is wrong.
    """
    builder = find_builder(name, data_dir)
    if is_prepared(builder):
        return pathlib.Path(builder.data_path)
    source = None if manual_dir is None else local_path(manual_dir, "--manual_dir")
    if source is not None and not source.is_dir():
        raise UserError(
            f"--manual_dir={manual_dir} is not a directory; name the one that holds the files "
            f"downloaded for {builder.name!r}, or leave it out to download them"
        )
    try:
        # TFDS prints to stdout, which belongs to the results of the program.
        with contextlib.redirect_stdout(sys.stderr):
            if builder.name in SOURCE_READERS:
                _prepare_without_tensorflow(builder, source)
            else:
                _prepare_with_tensorflow(builder, source)
    except OSError as error:
        # Another process may have prepared it first: its directory is then in the way.
        if not is_prepared(find_builder(name, data_dir)):
            raise UserError(
                f"the data set {builder.name!r} cannot be written to {builder.data_dir_root}: "
                f"{summary(error)}; choose a writable directory with enough space by --data_dir"
            ) from error
    return pathlib.Path(builder.data_path)


def _prepare_without_tensorflow(builder: Any, manual_dir: pathlib.Path | None) -> None:
    source_dir = manual_dir or _download_dir(builder)
    if manual_dir is None:
        download_source_files(builder, source_dir)
    else:
        verify_source_files(builder, source_dir)
    tensorflow_free = tensorflow_free_builder(type(builder))(data_dir=builder.data_dir_root)
    tensorflow_free.source_dir = source_dir
    _write(tensorflow_free, None)


def _prepare_with_tensorflow(builder: Any, manual_dir: pathlib.Path | None) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise PreparationImpossibleError(
            f"TensorFlow, needed to prepare {builder.name!r}, is not installed "
            "(pip install -e '.[tensorflow]')",
            f"install it, or choose a data set that needs none: {', '.join(SOURCE_READERS)}",
        )
    # TFDS downloads what it does not find, and without a network retries for minutes.
    missing = [
        url
        for url, info in (builder.url_infos or {}).items()
        if not (manual_dir and info.filename and (manual_dir / info.filename).exists())
    ]
    if missing:
        require_reachable(missing[0])
    try:
        _write(builder, manual_dir)
    except Exception as error:  # Whatever the code of one of many hundred builders may raise.
        raise UserError(
            f"TensorFlow Datasets failed to prepare {builder.name!r} in {builder.data_dir_root}: "
            f"{summary(error)}; files downloaded by hand are given by --manual_dir=DIR"
        ) from error


def _write(builder: Any, manual_dir: pathlib.Path | None) -> None:
    import tensorflow_datasets as tfds

    builder.download_and_prepare(
        file_format="array_record",
        download_dir=_download_dir(builder),
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False),
    )


def _download_dir(builder: Any) -> pathlib.Path:
    """One folder for each data set: the files of mnist and fashion_mnist have the same names."""
    return pathlib.Path(builder.data_dir_root) / "downloads" / builder.name
