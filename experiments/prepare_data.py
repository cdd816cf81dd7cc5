"""Prepares a data set of TensorFlow Datasets (TFDS), so that it can be read without TensorFlow.

    python -m experiments.prepare_data --dataset=mnist [--data_dir=DIR] [--manual_dir=DIR]

`mnist`, `fashion_mnist`, `kmnist`, `cifar10` and `cifar100` need no TensorFlow: their official
builders keep their name, version, features, addresses and checksums, and only the reading of the
source files is replaced. Any other data set goes through its official builder, which needs
TensorFlow. Both write the usual directories of TFDS, in the array_record format.
"""

import contextlib
import gzip
import importlib.util
import itertools
import os
import pathlib
import queue
import re
import shlex
import struct
import sys
import tarfile
import tempfile
import textwrap
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import app, flags, logging

from experiments.system import console
from experiments.system.errors import UserError
from experiments.system.paths import local_path

EMBEDDED_DATASETS = ("digits", "photos", "npz")
_PROBE_SECONDS = 3.0
# To connect, and between two blocks of a download.
_DOWNLOAD_TIMEOUT_SECONDS = (10.0, 60.0)


class PreparationImpossibleError(UserError):
    """A data set cannot be prepared on this machine as it is: no network, or no TensorFlow.

    Attributes:
      reason: What stands in the way, without the way out.
    """

    def __init__(self, reason: str, way_out: str):
        """Makes the message of both, as the parts of a sentence."""
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
def find_builder(
    name: str, data_dir: str = "", *, embedded: Iterable[str] = EMBEDDED_DATASETS
) -> Any:
    """Returns the TFDS builder of a data set, prepared or not, without using the network.

    Args:
      name: Name of the data set, `name[/config][:version]`.
      data_dir: Where TFDS data sets are stored; see `resolve_data_dir`.
      embedded: Names of data sets that need none, for the message where there is no such builder.

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
            f"{directory}; {_nearest_names(name, directory, list(embedded))}"
        ) from error
    except Exception as error:
        # An unparsable name is a ValueError, an unknown version an AssertionError, a missing
        # package of a "namespace:" an ImportError, and so on.
        raise UserError(
            f"the data set {name!r} cannot be opened in {directory} ({_summary(error)}); "
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
    return (
        f"python -m experiments.prepare_data --dataset={name} "
        f"--data_dir={data_dir} [--manual_dir=DIR]"
    )


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
        or the data set needs TensorFlow, which is not installed.
      UserError: If the data set or a source file does not exist, a checksum is wrong or the
        directory is not writable.
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
            if builder.name in _SOURCE_READERS:
                _prepare_without_tensorflow(builder, source)
            else:
                _prepare_with_tensorflow(builder, source)
    except OSError as error:
        # Another process may have prepared it first: its directory is then in the way.
        if not is_prepared(builder):
            raise UserError(
                f"the data set {builder.name!r} cannot be written to {builder.data_dir_root}: "
                f"{_summary(error)}; choose a writable directory with enough space by --data_dir"
            ) from error
    return pathlib.Path(builder.data_path)


def _prepare_without_tensorflow(builder: Any, manual_dir: pathlib.Path | None) -> None:
    import tensorflow_datasets as tfds

    source_dir = manual_dir or _download_dir(builder)
    if manual_dir is None:
        _download_source_files(builder, source_dir)
    else:
        _verify_source_files(builder, source_dir)
    tensorflow_free = _tensorflow_free_builder(type(builder))(data_dir=builder.data_dir_root)
    tensorflow_free.source_dir = source_dir
    tensorflow_free.download_and_prepare(
        file_format="array_record",
        download_dir=_download_dir(builder),
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )


def _prepare_with_tensorflow(builder: Any, manual_dir: pathlib.Path | None) -> None:
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") is None:
        raise PreparationImpossibleError(
            f"TensorFlow, needed to prepare {builder.name!r}, is not installed "
            "(pip install 'sere-jax[tensorflow]')",
            f"install it, or choose a data set that needs none: {', '.join(_SOURCE_READERS)}",
        )
    # TFDS downloads what it does not find, and without a network retries for minutes.
    missing = [
        url
        for url, info in (builder.url_infos or {}).items()
        if not (manual_dir and info.filename and (manual_dir / info.filename).exists())
    ]
    if missing:
        _require_reachable(missing[0])
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_dir=_download_dir(builder),
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir, try_download_gcs=False
            ),
        )
    except Exception as error:  # Whatever the code of one of many hundred builders may raise.
        raise UserError(
            f"TensorFlow Datasets failed to prepare {builder.name!r} in {builder.data_dir_root}: "
            f"{_summary(error)}; files downloaded by hand are given by --manual_dir=DIR"
        ) from error


def _download_dir(builder: Any) -> pathlib.Path:
    """One folder for each data set: the files of mnist and fashion_mnist have the same names."""
    return pathlib.Path(builder.data_dir_root) / "downloads" / builder.name


# ------------------------------------------------------------------------------- source files


def _is_intact(path: pathlib.Path, url_info: Any) -> bool:
    from tensorflow_datasets.core.download import checksums

    return path.exists() and checksums.compute_url_info(path) == url_info


def _verify_source_files(builder: Any, directory: pathlib.Path) -> None:
    url_infos = {info.filename: info for info in builder.url_infos.values()}
    missing = [filename for filename in url_infos if not (directory / filename).exists()]
    if missing:
        raise UserError(
            f"{directory} lacks {', '.join(missing)}, needed to prepare {builder.name!r}; download "
            f"into it: {', '.join(builder.url_infos)}"
        )
    for filename, info in url_infos.items():
        if not _is_intact(directory / filename, info):
            raise _wrong_checksum(directory / filename, info)


def _download_source_files(builder: Any, directory: pathlib.Path) -> None:
    import tqdm

    missing = {
        url: info
        for url, info in builder.url_infos.items()
        if not _is_intact(directory / info.filename, info)
    }
    if not missing:
        return
    _require_reachable(next(iter(missing)))
    directory.mkdir(parents=True, exist_ok=True)
    with tqdm.tqdm(
        total=sum(info.size for info in missing.values()),
        desc=f"Downloading {builder.name}",
        unit="B",
        unit_scale=True,
        mininterval=1.0,
    ) as progress:
        for url, info in missing.items():
            _download(url, directory / info.filename, info, progress)


def _download(url: str, destination: pathlib.Path, url_info: Any, progress: Any) -> None:
    """Downloads one file; under the destination's name, there is never an unverified file."""
    import requests

    with tempfile.TemporaryDirectory(dir=destination.parent, prefix="incomplete.") as directory:
        incomplete = pathlib.Path(directory) / destination.name
        try:
            with (
                requests.get(url, stream=True, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as response,
                incomplete.open("wb") as file,
            ):
                response.raise_for_status()
                for block in response.iter_content(chunk_size=1 << 16):
                    file.write(block)
                    progress.update(len(block))
        except requests.RequestException as error:
            raise UserError(
                f"the download of {url} failed: {_summary(error)}; try again later, or download "
                f"{destination.name} by hand and name its directory by --manual_dir=DIR"
            ) from error
        if not _is_intact(incomplete, url_info):
            raise _wrong_checksum(incomplete, url_info, origin=url)
        incomplete.replace(destination)


def _wrong_checksum(path: pathlib.Path, expected: Any, origin: str = "") -> UserError:
    from tensorflow_datasets.core.download import checksums

    actual = checksums.compute_url_info(path)
    return UserError(
        f"{origin or path} has a wrong checksum: expected {int(expected.size)} bytes with SHA-256 "
        f"{expected.checksum}, got {int(actual.size)} bytes with {actual.checksum}; the file is "
        "damaged or another one: download it again, or name the directory of the right one by "
        "--manual_dir=DIR"
    )


def _require_reachable(url: str) -> None:
    """Asks the host for the header of a file; raises PreparationImpossibleError after 3 seconds.

    In a thread, since the look-up of a host's name has no time limit of its own.
    """
    import requests

    outcomes: queue.Queue[Exception | None] = queue.Queue()

    def connect() -> None:
        try:
            requests.head(url, timeout=_PROBE_SECONDS).close()
            outcomes.put(None)
        except requests.RequestException as error:
            outcomes.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        error = outcomes.get(timeout=_PROBE_SECONDS)
    except queue.Empty:
        error = TimeoutError()
    if error is not None:
        raise PreparationImpossibleError(
            f"{url} cannot be reached ({type(error).__name__})",
            "use a machine with a network, or download the file by hand and name its directory by "
            "--manual_dir=DIR",
        ) from error


# ---------------------------------------------------- official builders, read without TensorFlow


class _IdxReader:
    """Reads the format of MNIST: gzipped IDX files, one for images and one for labels."""

    source_dir: pathlib.Path

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # It would retry for minutes without a network; the files are there.
        return {
            split: self._generate_examples(
                self.source_dir / f"{prefix}-images-idx3-ubyte.gz",
                self.source_dir / f"{prefix}-labels-idx1-ubyte.gz",
            )
            for split, prefix in [("train", "train"), ("test", "t10k")]
        }

    def _generate_examples(
        self, images_path: pathlib.Path, labels_path: pathlib.Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        import PIL.Image

        # The keys are those of the official builder: they determine the order of the examples.
        pairs = zip(_read_idx(images_path), _read_idx(labels_path), strict=True)
        for key, (image, label) in enumerate(pairs):
            # NumPy arrays would be encoded by TensorFlow, PIL images are not.
            yield key, {"image": PIL.Image.fromarray(image), "label": int(label)}


def _read_idx(path: pathlib.Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = struct.unpack_from(f">{rank}I", content, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


class _CifarReader:
    """Reads the binary version of CIFAR: a tar archive of records, labels before pixels."""

    source_dir: pathlib.Path
    url_infos: Mapping[str, Any]
    info: Any
    _cifar_info: Any

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        (source,) = self.url_infos.values()
        layout = self._cifar_info
        with tarfile.open(self.source_dir / source.filename) as archive:
            contents = {
                member.name.removeprefix(layout.prefix): file.read()
                for member in archive
                if (file := archive.extractfile(member)) is not None
            }
        for label_key, file_name in zip(layout.label_keys, layout.label_files, strict=True):
            names = contents[file_name].decode().split("\n")
            self.info.features[label_key].names = [name for name in names if name]
        return {
            split: self._generate_examples(split, [contents[name] for name in file_names])
            for split, file_names in [("train", layout.train_files), ("test", layout.test_files)]
        }

    def _generate_examples(
        self, split: str, contents: list[bytes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        import PIL.Image

        label_keys = self._cifar_info.label_keys
        height, width, channels = self.info.features["image"].shape
        record_size = len(label_keys) + height * width * channels
        batches = [np.frombuffer(batch, np.uint8).reshape(-1, record_size) for batch in contents]
        # The keys are those of the official builder: they determine the order of the examples.
        for key, record in enumerate(itertools.chain(*batches)):
            labels, pixels = np.split(record, [len(label_keys)])
            image = pixels.reshape(channels, height, width).transpose(1, 2, 0)
            yield (
                key,
                {
                    **dict(zip(label_keys, map(int, labels), strict=True)),
                    "id": f"{split}_{key:05d}",
                    # NumPy arrays would be encoded by TensorFlow, PIL images are not.
                    "image": PIL.Image.fromarray(np.ascontiguousarray(image)),
                },
            )


_SOURCE_READERS: dict[str, type] = {
    "mnist": _IdxReader,
    "fashion_mnist": _IdxReader,
    "kmnist": _IdxReader,
    "cifar10": _CifarReader,
    "cifar100": _CifarReader,
}


def _tensorflow_free_builder(official: Any) -> Any:
    reader: Any = _SOURCE_READERS[official.name]

    class TensorFlowFreeBuilder(reader, official, skip_registration=True):  # type: ignore[call-arg]
        name = official.name

    # TFDS finds the registered checksums beside the module, and records its name.
    TensorFlowFreeBuilder.__module__ = official.__module__
    return TensorFlowFreeBuilder


# ----------------------------------------------------------------------------------- messages


def _is_a_path(name: str) -> UserError:
    return UserError(
        f"the data set {name!r} is a path, and data sets are chosen by name; save images of your "
        "own in one file by numpy.savez('FILE.npz', train=images) and give "
        "--config.dataset.name=npz --config.dataset.path=FILE.npz, or load them as "
        "examples/dataset.py does"
    )


def _nearest_names(name: str, directory: pathlib.Path, embedded: list[str]) -> str:
    import difflib

    import tensorflow_datasets as tfds

    prepared = [path.parent.name for path in directory.glob("*/[0-9]*.[0-9]*.[0-9]*")]
    known = {
        *embedded,
        *prepared,
        *tfds.list_builders(with_community_datasets=False),
    }
    nearest = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.5)
    if nearest:
        return f"the nearest names are {', '.join(nearest)}"
    return (
        f"allowed are {', '.join(embedded)} and the names at "
        "https://www.tensorflow.org/datasets/catalog/overview"
    )


def _summary(error: Exception) -> str:
    """One line of an exception of a library, some of which write a page."""
    # TFDS puts the arguments of its own call in front.
    message = re.sub(r'^Failed to construct dataset .*?}": ', "", str(error).strip())
    first_line = message.partition("\n")[0]
    return textwrap.shorten(f"{type(error).__name__}: {first_line}", width=200)


# ------------------------------------------------------------------------------- command line


def _main(argv: list[str]) -> None:
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; write --dataset=NAME")
        name, data_dir = flags.FLAGS.dataset, flags.FLAGS.data_dir
        if not name:
            raise UserError(
                f"--dataset=NAME is missing; without TensorFlow: {', '.join(_SOURCE_READERS)}"
            )
        if name in EMBEDDED_DATASETS:
            raise UserError(
                f"the data set {name!r} needs no preparation: use it by "
                f"--config.dataset.name={name}"
            )
        builder = find_builder(name, data_dir)
        if is_prepared(builder):
            print(f"{builder.name} is already prepared in {builder.data_path}")
        else:
            directory = prepare(name, data_dir, flags.FLAGS.manual_dir)
            print(f"{builder.name} is prepared in {directory}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run() -> None:
    """Runs the command line; the flags are defined here, so that an import defines none."""
    flags.DEFINE_string("dataset", "", "Name of the data set, NAME[/CONFIG][:VERSION].")
    flags.DEFINE_string(
        "data_dir", "", "Where to write; default: TFDS_DATA_DIR, else ~/tensorflow_datasets."
    )
    flags.DEFINE_string(
        "manual_dir", None, "Directory with the source files, if downloaded before."
    )
    app.run(_main)


if __name__ == "__main__":
    console.make_robust()
    run()
