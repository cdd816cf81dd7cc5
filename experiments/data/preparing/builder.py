"""Builders of TFDS: found by name, and whether their data sets are prepared."""

import contextlib
import difflib
import os
import pathlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

from absl import logging

from experiments.data.dataset import DATASETS
from experiments.system.errors import UserError
from experiments.system.paths import local_path


class PreparationImpossibleError(UserError):
    """A data set cannot be prepared on this machine as it is: no network, or no TensorFlow.

    `reason` says what stands in the way, without the way out.
    """

    def __init__(self, reason: str, way_out: str):
        super().__init__(f"{reason}; {way_out}")
        self.reason = reason


def resolve_data_dir(data_dir: str = "") -> pathlib.Path:
    """Returns `data_dir`, else TFDS_DATA_DIR, else TFDS' own default directory."""
    directory = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    name = "data_dir" if data_dir else "TFDS_DATA_DIR"
    return local_path(directory, name).absolute()


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Context, or decorator, in which TFDS logs errors only: its failures are reported by us."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@quiet_logs()
def find_builder(name: str, data_dir: str = "") -> Any:
    """Returns the TFDS builder of a data set, prepared or not, without using the network.

    Raises:
      UserError: If TFDS has no such data set, and none is prepared in the directory.
    """
    import tensorflow_datasets as tfds

    directory = resolve_data_dir(data_dir)
    if re.match(r"[./~]|.*(://|\\\\)", name):
        raise _is_a_path(name)
    try:
        return tfds.builder(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError as error:
        if os.path.exists(name):
            raise _is_a_path(name) from error
        raise UserError(
            f"no data set is called {name!r}, neither in TensorFlow Datasets nor prepared in "
            f"{directory}; {_nearest_names(name, directory)}"
        ) from error
    except Exception as error:
        # An unparsable name is a ValueError, an unknown version an AssertionError, a missing
        # package of a "namespace:" an ImportError, and so on.
        raise UserError(
            f"the data set {name!r} cannot be opened in {directory} ({summary(error)}); "
            "a name is NAME[/CONFIG][:VERSION], for example mnist or emnist/letters:3.1.0; if it "
            "is right, what lies there is damaged: prepare it again in another data_dir"
        ) from error


def is_prepared(builder: Any) -> bool:
    """Whether the files of a builder's data set are complete.

    TFDS writes into a directory of another name and renames it at the very end.

    Raises:
      UserError: If the directory exists but was not written completely, or lost files.
    """
    directory = pathlib.Path(builder.data_path)
    if not directory.exists():
        return False
    files_of_splits = [
        pathlib.Path(path) for split in builder.info.splits.values() for path in split.filepaths
    ]
    description = directory / "dataset_info.json"
    lost = [path.name for path in [description, *files_of_splits] if not path.exists()]
    if lost or not files_of_splits:
        raise UserError(
            f"the data set {builder.name!r} in {directory} is damaged "
            f"({', '.join(lost[:3]) or 'its splits'} missing); prepare it again in another "
            f"directory DIR and name that as data_dir: {preparation_command(builder, 'DIR')}"
        )
    return True


def preparation_command(builder: Any, data_dir: str = "") -> str:
    """The shell command that prepares a builder's data set in `data_dir`, or where it belongs."""
    data_dir = data_dir or shlex.quote(str(builder.data_dir_root))
    name = "/".join(filter(None, [builder.name, builder.builder_config_name]))
    return f"python -m experiments.prepare_data --dataset={name} --data_dir={data_dir}"


def _is_a_path(name: str) -> UserError:
    return UserError(
        f"the data set {name!r} is a path, and data sets are chosen by name; save images of your "
        "own in one file by numpy.savez('FILE.npz', train=images) and give "
        "--config.dataset.name=npz --config.dataset.path=FILE.npz, give a folder of pictures by "
        "--config.dataset.name=folder --config.dataset.path=FOLDER, or load them as "
        "examples/dataset.py does"
    )


def _nearest_names(name: str, directory: pathlib.Path) -> str:
    import tensorflow_datasets as tfds

    prepared = [path.parent.name for path in directory.glob("*/[0-9]*.[0-9]*.[0-9]*")]
    known = {*DATASETS, *prepared, *tfds.list_builders(with_community_datasets=False)}
    nearest = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.5)
    if nearest:
        return f"the nearest names are {', '.join(nearest)}"
    return (
        f"allowed are {', '.join(DATASETS)} and the names at "
        "https://www.tensorflow.org/datasets/catalog/overview"
    )


def summary(error: Exception) -> str:
    """One line of an exception of a library, some of which write a page."""
    # TFDS puts the arguments of its own call in front.
    message = re.sub(r'^Failed to construct dataset .*?}": ', "", str(error).strip())
    first_line = message.partition("\n")[0]
    return textwrap.shorten(f"{type(error).__name__}: {first_line}", width=200)
