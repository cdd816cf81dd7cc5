"""Image data sets as arrays of uint8: embedded ones, TensorFlow Datasets and the user's own.

A data set is read once and kept in memory as a whole; the input pipeline moves it to the device. To
add one, write its loader and enter it in `DATASETS`, from whatever file.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from experiments import prepare_data
from experiments.system.errors import UserError
from experiments.system.paths import local_path

# The digits were collected on forms, one after the other in the file; a form begins here.
_FIRST_TEST_DIGIT = 1415

# The regions of each photograph, from left to right, as fractions of its width.
_PHOTO_TRAIN_FRACTION = 0.60
_PHOTO_VALIDATION_FRACTION = 0.15

_NPZ_TEST_FRACTION = 0.1

_EXAMPLES_PER_READ = 512
_CACHE_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set of images of one shape.

    Attributes:
      name: The name it was loaded by.
      train: uint8 [num, height, width, channels], values 0..max_value.
      validation: The same for the held-out training examples; num is 0 if none was held out.
      test: The same for the test examples.
      max_value: The brightest value: 255, 16 for `digits`, 1 for binary images.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    max_value: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on all images and on their order, not on the name."""
        digest = hashlib.sha256(f"max_value={self.max_value}".encode())
        for images in (self.train, self.validation, self.test):
            digest.update(str(images.shape).encode())
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()[:16]


def load_dataset(dataset_config: ml_collections.ConfigDict) -> Dataset:
    """Loads a data set and holds out its validation examples.

    - `digits`: scikit-learn's handwritten digits, 8x8x1 with grey levels 0..16. They were
      collected on forms of about 130 digits, stored one form after the other; the last three forms
      (382 digits) are the test set. Shuffled before, digits of one hand would be on both sides.
    - `photos`: square colour patches of scikit-learn's two sample photographs. The left 60 % of
      each photograph gives the training patches (overlapping, in a fixed random order), the next
      15 % the validation patches and the right 25 % the test patches (side by side, for honest
      standard errors): no pixel is in two of the sets.
    - `npz`: arrays of the user, see `path` below.
    - any other that is entered in `DATASETS`.
    - any image data set of TensorFlow Datasets (TFDS), `name[/config][:version]`, read without
      TensorFlow. The decoded images are cached in the user's cache directory. Without a split
      `test`, the split `validation` is the test set; with both, it is the validation set.

    Args:
      dataset_config: With the fields
        `name`: see above.
        `data_dir`: where TFDS data sets are stored; "": TFDS_DATA_DIR, else ~/tensorflow_datasets.
        `download`: whether a TFDS data set not prepared yet is prepared now (default True).
        `path`: the file of `npz`, with the arrays `train` and optionally `validation` and `test`
          (else the last 10 % of `train`), each [num, height, width] or [num, height, width,
          channels]: integers 0..255, or binary images as booleans, as floats 0.0 and 1.0, or as
          integers 0 and 1 throughout.
        `validation_size`: how many of the last training examples are held out: a number, or a
          fraction below 1; 0 for none (the default). It does not apply to a data set with a
          validation set of its own. For `photos`, that many patches (at most all) are taken evenly
          from the validation region, a fraction being one of the number of training patches.
        `num_train_examples`: only the first of the remaining training examples are kept, at most
          this number; 0 (default): all.
        `image_size`: height and width of the patches of `photos` in pixels (default 32).

    Returns:
      The data set.

    Raises:
      UserError: If the data set does not exist, is not prepared and cannot be, or is not one of
        images of one shape; if a field of the configuration has an impossible value.
    """
    name = dataset_config.name
    if not isinstance(name, str) or not name:
        raise UserError(
            f"config.dataset.name={name!r} is not a name; allowed are {', '.join(DATASETS)} and "
            "the image data sets of TensorFlow Datasets, for example mnist"
        )
    path = dataset_config.get("path", "")
    if path and (name in ("digits", "photos") or name not in DATASETS):
        raise UserError(
            f"config.dataset.path={path!r} means nothing to {name!r}; set it to '', or choose "
            "config.dataset.name=npz"
        )
    dataset = DATASETS.get(name, _load_tfds)(dataset_config)
    _check_arrays(dataset)
    num_train_examples = dataset_config.get("num_train_examples", 0)
    if num_train_examples < 0:
        raise UserError(
            f"config.dataset.num_train_examples={num_train_examples} is negative; allowed are "
            "0 (all) and positive numbers"
        )
    if num_train_examples:
        dataset = dataclasses.replace(dataset, train=dataset.train[:num_train_examples])
    return dataset


def _check_arrays(dataset: Dataset) -> None:
    """Refuses what a loader must not return."""
    for split in ("train", "validation", "test"):
        images = getattr(dataset, split)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(
                f"the images of the data set {dataset.name!r} must be uint8 [num, height, width, "
                f"channels], but those of {split!r} are {_description(images)}"
            )
        largest = images.max(initial=0)
        if largest > dataset.max_value:
            raise UserError(
                f"the data set {dataset.name!r} says that max_value={dataset.max_value} is white, "
                f"but {split!r} holds the value {largest}"
            )


def split_validation(
    train: np.ndarray, dataset_config: ml_collections.ConfigDict
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (the first, the last) training examples, as `config.dataset.validation_size` says.

    Raises:
      UserError: If it is impossible, or leaves nothing to train on.
    """
    num_validation = _num_validation_examples(dataset_config, len(train))
    if num_validation >= len(train):
        raise UserError(
            f"config.dataset.validation_size={dataset_config.validation_size} leaves nothing of "
            f"the {len(train)} training examples of {dataset_config.name!r}; hold out fewer than "
            f"{len(train)}, or use more images"
        )
    num_train = len(train) - num_validation
    return train[:num_train], train[num_train:]


def _num_validation_examples(dataset_config: ml_collections.ConfigDict, num_train: int) -> int:
    validation_size = dataset_config.get("validation_size", 0)
    if 0 < validation_size < 1:
        return max(1, round(validation_size * num_train))
    # A field of type float turns 5000 into 5000.0.
    if validation_size < 0 or validation_size != int(validation_size):
        raise UserError(
            f"config.dataset.validation_size={validation_size} is neither a number of examples "
            "(0, 1, 2, ...) nor a fraction between 0 and 1"
        )
    return int(validation_size)


# --------------------------------------------------------------------------- embedded data sets


def _load_digits(dataset_config: ml_collections.ConfigDict) -> Dataset:
    # Importing scikit-learn takes longer than all else up to the first step of a small run.
    sklearn = importlib.util.find_spec("sklearn")
    assert sklearn is not None and sklearn.origin is not None
    file = pathlib.Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 64 pixels and the label
    images = rows[:, :-1].reshape(-1, 8, 8, 1)
    train, test = np.split(images, [_FIRST_TEST_DIGIT])
    train, validation = split_validation(train, dataset_config)
    return Dataset("digits", train, validation, test, max_value=16)


def _load_photos(dataset_config: ml_collections.ConfigDict) -> Dataset:
    import sklearn.datasets

    photos = sklearn.datasets.load_sample_images().images
    size = dataset_config.get("image_size", 32)
    height, width, _ = photos[0].shape
    train_end = round(_PHOTO_TRAIN_FRACTION * width)
    validation_end = train_end + round(_PHOTO_VALIDATION_FRACTION * width)
    largest = min(height, validation_end - train_end)
    if not 1 <= size <= largest:
        raise UserError(
            f"config.dataset.image_size={size} does not fit the photographs; allowed are "
            f"1 to {largest} pixels"
        )
    train = _patches([photo[:, :train_end] for photo in photos], size, stride=max(1, size // 4))
    validation = _patches([photo[:, train_end:validation_end] for photo in photos], size, size)
    num_validation = min(_num_validation_examples(dataset_config, len(train)), len(validation))
    validation = validation[np.arange(num_validation) * len(validation) // max(1, num_validation)]
    test = _patches([photo[:, validation_end:] for photo in photos], size, size)
    train, test = _shuffled(train), _shuffled(test)
    return Dataset("photos", train, validation, test, max_value=255)


def _shuffled(patches: np.ndarray) -> np.ndarray:
    """In a fixed random order, so that the first of them are a fair sample."""
    # Only the stream of RandomState, unlike that of newer generators, is the same in all versions
    # of NumPy.
    return patches[np.random.RandomState(0).permutation(len(patches))]


def _patches(photos: list[np.ndarray], size: int, stride: int) -> np.ndarray:
    """Returns all patches on a grid, uint8 [num, size, size, channels]."""
    patches = [
        np.lib.stride_tricks.sliding_window_view(photo, (size, size), axis=(0, 1))[
            ::stride, ::stride
        ]
        .transpose(0, 1, 3, 4, 2)
        .reshape(-1, size, size, photo.shape[-1])
        for photo in photos
    ]
    return np.concatenate(patches)


# ---------------------------------------------------------------------------- the user's arrays


def _load_npz(dataset_config: ml_collections.ConfigDict) -> Dataset:
    arrays = _read_npz(dataset_config.get("path", ""))
    images = {split: _validated_images(split, array) for split, array in arrays.items()}
    is_binary = all(array.max() <= 1 for array in images.values())
    for split, array in arrays.items():
        if not is_binary and array.dtype.kind in "bf":
            raise UserError(
                f"the array {split!r} ({_description(array)}) is one of binary images, but another "
                "array of the file has values above 1; save all of them as uint8 0..255, or all "
                "as booleans"
            )
        if images[split].shape[1:] != images["train"].shape[1:]:
            raise UserError(
                f"the array {split!r} ({_description(array)}) and the array 'train' "
                f"({_description(arrays['train'])}) differ in the shape of their images; save "
                "images of one shape"
            )
    train, test, validation = images["train"], images.get("test"), images.get("validation")
    if test is None:
        num_test = max(1, round(_NPZ_TEST_FRACTION * len(train)))
        if num_test >= len(train):
            raise UserError(
                f"the array 'train' ({_description(train)}) is too small to hold out a test set; "
                "save an array 'test', or more examples"
            )
        train, test = np.split(train, [len(train) - num_test])
    if validation is None:
        train, validation = split_validation(train, dataset_config)
    return Dataset("npz", train, validation, test, max_value=1 if is_binary else 255)


def _read_npz(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays `train` and, where they exist, `validation` and `test`."""
    expected = "write it by numpy.savez(path, train=images, test=images)"
    try:
        npz_file = local_path(path, "config.dataset.path")
        is_file = npz_file.is_file()
    except (OSError, ValueError):  # Too long a name, a null byte.
        is_file = False
    if not path or not is_file:
        raise UserError(
            f"config.dataset.path={path!r} is not a file; name one written by "
            "numpy.savez(path, train=images, test=images)"
        )
    try:
        if not zipfile.is_zipfile(npz_file):  # numpy.load would read other formats too
            raise ValueError("it is no zip archive, or not all of one")
        with np.load(npz_file, allow_pickle=False) as content:
            names = list(content)
            arrays = {
                split: content[split] for split in ("train", "validation", "test") if split in names
            }
        for split, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"its entry {split!r} is not an array")
    except Exception as error:  # Pickled objects, damaged data...
        raise UserError(
            f"{npz_file} is not a readable .npz file of plain arrays ({error}); {expected}"
        ) from error
    if "train" not in arrays:
        raise UserError(
            f"{npz_file} has no array 'train', it has {', '.join(names) or 'none'}; {expected}"
        )
    return arrays


def _validated_images(split: str, array: np.ndarray) -> np.ndarray:
    """Returns the array as uint8 [num, height, width, channels]."""

    def refusal(problem: str) -> UserError:
        return UserError(
            f"the array {split!r} ({_description(array)}) {problem}; allowed are [num, height, "
            "width] or [num, height, width, channels] of uint8 0..255, or binary images as "
            "booleans or as floats 0.0 and 1.0: convert it and save it again"
        )

    if array.ndim not in (3, 4):
        raise refusal(f"has {array.ndim} dimensions")
    if array.size == 0:
        raise refusal("is empty")
    if array.dtype.kind not in "buif":
        raise refusal("does not hold numbers")
    is_allowed = (
        np.isin(array, [0, 1]) if array.dtype.kind == "f" else (array >= 0) & (array <= 255)
    )
    if not is_allowed.all():
        index = tuple(int(i) for i in np.unravel_index(np.argmin(is_allowed), array.shape))
        raise refusal(f"holds the value {array[index]} at {list(index)}")
    images = array.astype(np.uint8)
    return images if images.ndim == 4 else images[..., np.newaxis]


def _description(array: np.ndarray) -> str:
    return f"{array.dtype}, shape {list(array.shape)}"


DATASETS: dict[str, Callable[[ml_collections.ConfigDict], Dataset]] = {
    "digits": _load_digits,
    "photos": _load_photos,
    "npz": _load_npz,
}


# -------------------------------------------------------------------------- TensorFlow Datasets


@prepare_data.quiet_logs()
def _load_tfds(dataset_config: ml_collections.ConfigDict) -> Dataset:
    builder = _prepared_builder(dataset_config)
    feature = _image_feature(builder)
    splits = builder.info.splits
    if "train" not in splits or not {"test", "validation"} & set(splits):
        raise UserError(
            f"the data set {dataset_config.name!r} has the splits {', '.join(sorted(splits))}; "
            "needed are 'train' and one of 'test' and 'validation': choose another data set, or "
            "split it yourself and use --config.dataset.name=npz"
        )
    train = _read_split(builder, "train", feature)
    test = _read_split(builder, "test" if "test" in splits else "validation", feature)
    if {"test", "validation"} <= set(splits):
        validation = _read_split(builder, "validation", feature)
    else:
        train, validation = split_validation(train, dataset_config)
    for split, images in [("test", test), ("validation", validation)]:
        if images.shape[1:] != train.shape[1:]:
            raise _varying_shapes(builder, split, train.shape[1:], images.shape[1:])
    return Dataset(dataset_config.name, train, validation, test, max_value=255)


def _prepared_builder(dataset_config: ml_collections.ConfigDict) -> Any:
    """Returns a TFDS builder whose files exist, after preparing them if need be."""
    name, data_dir = dataset_config.name, dataset_config.get("data_dir", "")
    builder = prepare_data.find_builder(name, data_dir, embedded=DATASETS)
    if prepare_data.is_prepared(builder):
        return builder
    feature = _image_feature(builder)
    if dataset_config.get("download", True):
        try:
            prepare_data.prepare(name, data_dir)
            return prepare_data.find_builder(name, data_dir)
        except prepare_data.PreparationImpossibleError as error:
            obstacle = error.reason
            cause: Exception | None = error
    else:
        obstacle, cause = "config.dataset.download is False", None
    num_channels = builder.info.features[feature].shape[-1]
    embedded = "--config=configs/digits.py" if num_channels == 1 else "--config.dataset.name=photos"
    raise UserError(
        f"the data set {name!r} is not prepared in {builder.data_path}, and {obstacle}; prepare it "
        "on a machine with a network, or from files already downloaded, by: "
        f"{prepare_data.preparation_command(builder)} -- or try, without any download: {embedded}"
    ) from cause


def _image_feature(builder: Any) -> str:
    """Returns the name of the feature that holds the image."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = [
        name
        for name, feature in (features.items() if hasattr(features, "items") else ())
        if isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    ]
    if "image" in images:
        return "image"
    if len(images) == 1:
        return images[0]
    raise UserError(
        f"the data set {builder.name!r} has {len(images) or 'no'} features that are uint8 images; "
        "needed is one, or one called 'image': choose another data set, or save its images "
        "yourself and use --config.dataset.name=npz"
    )


def _read_split(builder: Any, split: str, feature: str) -> np.ndarray:
    """Returns the decoded images of a split, from the cache if the source files are the same."""
    cache_file = _cache_file(builder, split)
    identity = _identity(builder, split, feature)
    images = _read_cache(cache_file, identity)
    if images is None:
        images = _decode_split(builder, split, feature)
        _write_cache(cache_file, identity, images)
    return images


def _decode_split(builder: Any, split: str, feature: str) -> np.ndarray:
    import tqdm

    description = f"Decoding {builder.name} {split}"
    try:
        source = builder.as_data_source(split)
        shape = source[0][feature].shape
        images = np.empty((len(source), *shape), np.uint8)
        with tqdm.tqdm(
            total=len(source), desc=description, unit=" images", delay=1.0, mininterval=1.0
        ) as progress:
            # One example at a time takes three times as long.
            for start in range(0, len(source), _EXAMPLES_PER_READ):
                indices = range(start, min(start + _EXAMPLES_PER_READ, len(source)))
                for index, example in zip(indices, source.__getitems__(indices), strict=True):
                    if example[feature].shape != shape:
                        raise _varying_shapes(builder, split, shape, example[feature].shape)
                    images[index] = example[feature]
                progress.update(len(indices))
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"the data set {builder.name!r} in {builder.data_path} is stored as "
            f"{builder.info.file_format}, which only TensorFlow reads; prepare it in another "
            f"directory, as array_record: {prepare_data.preparation_command(builder, 'DIR')}"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"the split {split!r} of the data set {builder.name!r} does not fit into memory; "
            "choose a smaller data set, or save part of it and use --config.dataset.name=npz"
        ) from error
    except Exception as error:  # Damaged files raise whatever the C++ reader or Pillow does.
        raise UserError(
            f"the data set {builder.name!r} in {builder.data_path} cannot be read "
            f"({type(error).__name__}); prepare it again in another directory DIR and name that by "
            f"config.dataset.data_dir: {prepare_data.preparation_command(builder, 'DIR')}"
        ) from error
    return images


def _varying_shapes(
    builder: Any, split: str, shape: tuple[int, ...], other: tuple[int, ...]
) -> UserError:
    return UserError(
        f"the data set {builder.name!r} has images of different shapes ({list(shape)}, and "
        f"{list(other)} in the split {split!r}); images of one shape are needed: choose another "
        "data set, or resize them yourself and use --config.dataset.name=npz"
    )


# ------------------------------------------------------------------- the cache of decoded images


def _cache_file(builder: Any, split: str) -> pathlib.Path:
    """One file for each split of each prepared data set."""
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


def _read_cache(cache_file: pathlib.Path, identity: str) -> np.ndarray | None:
    try:
        # The zip format carries a checksum, which is verified on reading.
        with cache_file.open("rb") as file, np.load(file, allow_pickle=False) as content:
            if str(content["identity"]) == identity:
                return content["images"]
    except Exception:  # Whatever is wrong with a cache file, it is rebuilt.
        return None
    return None


def _write_cache(cache_file: pathlib.Path, identity: str, images: np.ndarray) -> None:
    """Writes atomically; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_file.parent) as directory:
            incomplete = pathlib.Path(directory) / cache_file.name
            np.savez(incomplete, identity=np.array(identity), images=images)
            incomplete.replace(cache_file)
