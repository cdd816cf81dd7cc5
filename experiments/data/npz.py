"""Images of the user, in one file written by `numpy.savez`."""

import zipfile

import ml_collections
import numpy as np

from experiments.data.dataset import (
    Dataset,
    Labels,
    describe,
    needs_labels,
    split_validation,
)
from experiments.system.errors import UserError
from experiments.system.paths import local_path

SPLITS = ("train", "validation", "test")
_TEST_FRACTION = 0.1
_WAY_OUT = "numpy.savez(path, train=images, test=images)"


def load_npz(dataset_config: ml_collections.ConfigDict) -> Dataset:
    """The arrays `train` and optionally `validation` and `test` (else the last 10 % of `train`).

    Each is [num, height, width] or [num, height, width, channels]: integers 0..255, or binary
    images as booleans, as floats 0.0 and 1.0, or as integers 0 and 1 throughout. Where labels are
    needed, `train_labels` and so on hold them, integers [num] from 0.
    """
    path = dataset_config.get("path", "")
    arrays = _read_npz(path, SPLITS)
    images = {split: _validated_images(split, array) for split, array in arrays.items()}
    is_binary = all(array.max() <= 1 for array in images.values())
    for split, array in arrays.items():
        if not is_binary and array.dtype.kind in "bf":
            raise UserError(
                f"the array {split!r} ({describe(array)}) is one of binary images, but another "
                "array of the file has values above 1; save all of them as uint8 0..255, or all "
                "as booleans"
            )
        if images[split].shape[1:] != images["train"].shape[1:]:
            raise UserError(
                f"the array {split!r} ({describe(array)}) and the array 'train' "
                f"({describe(arrays['train'])}) differ in the shape of their images; save "
                "images of one shape"
            )
    of_images = None
    if needs_labels(dataset_config):
        labels = _read_labels(path, images)
        num_classes = 1 + max(int(array.max(initial=0)) for array in labels.values())
        of_images = Labels(*_parts(labels, dataset_config), num_classes)
    max_value = 1 if is_binary else 255
    return Dataset("npz", *_parts(images, dataset_config), max_value, of_images)


def _parts(
    arrays: dict[str, np.ndarray], dataset_config: ml_collections.ConfigDict
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is to train, to validate and to test, the latter two held out if need be."""
    train, test, validation = arrays["train"], arrays.get("test"), arrays.get("validation")
    if test is None:
        num_test = max(1, round(_TEST_FRACTION * len(train)))
        if num_test >= len(train):
            raise UserError(
                f"the array 'train' ({describe(train)}) is too small to hold out a test set; "
                "save an array 'test', or more examples"
            )
        train, test = np.split(train, [len(train) - num_test])
    if validation is None:
        train, validation = split_validation(train, dataset_config)
    return train, validation, test


def _read_labels(path: str, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays `train_labels` and so on of the splits of `images`."""
    found = _read_npz(path, ("train", *(f"{split}_labels" for split in images)))
    labels = {}
    for split, of_split in images.items():
        array = found.get(f"{split}_labels")
        is_integer = array is not None and array.dtype.kind in "ui"
        if array is None or not is_integer or array.shape != of_split.shape[:1] or array.min() < 0:
            state = "is missing" if array is None else f"is {describe(array)}"
            raise UserError(
                f"config.dataset.condition='label' needs the array '{split}_labels' of integers "
                f"from 0, one for each of the {len(of_split)} images of {split!r}, which {state}; "
                "numpy.savez(path, train=images, train_labels=labels, ...) writes it"
            )
        labels[split] = array
    return labels


def _read_npz(path: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns `train`, which must exist, and those of the other arrays that do."""
    try:
        npz_file = local_path(path, "config.dataset.path")
        is_file = npz_file.is_file()
    except (OSError, ValueError):  # Too long a name, a null byte.
        is_file = False
    if not path or not is_file:
        raise UserError(
            f"config.dataset.path={path!r} is not a file; name one written by {_WAY_OUT}"
        )
    try:
        if not zipfile.is_zipfile(npz_file):  # numpy.load would read other formats too
            raise ValueError("it is no zip archive, or not all of one")
        with np.load(npz_file, allow_pickle=False) as content:
            present = list(content)
            arrays = {name: content[name] for name in names if name in present}
        for split, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"its entry {split!r} is not an array")
    except Exception as error:  # Pickled objects, damaged data...
        raise UserError(
            f"{npz_file} is not a readable .npz file of plain arrays ({error}); "
            f"write it by {_WAY_OUT}"
        ) from error
    if "train" not in arrays:
        raise UserError(
            f"{npz_file} has no array 'train', it has {', '.join(present) or 'none'}; "
            f"write it by {_WAY_OUT}"
        )
    return arrays


def _validated_images(split: str, array: np.ndarray) -> np.ndarray:
    """Returns the array as uint8 [num, height, width, channels]."""
    problem = _problem_of(array)
    if problem:
        raise UserError(
            f"the array {split!r} ({describe(array)}) {problem}; allowed are [num, height, "
            "width] or [num, height, width, channels] of uint8 0..255, or binary images as "
            "booleans or as floats 0.0 and 1.0: convert it and save it again"
        )
    images = array.astype(np.uint8)
    return images if images.ndim == 4 else images[..., np.newaxis]


def _problem_of(array: np.ndarray) -> str:
    """Why the array is not one of images, or ''."""
    if array.ndim not in (3, 4):
        return f"has {array.ndim} dimensions"
    if array.size == 0:
        return "is empty"
    if array.dtype.kind not in "buif":
        return "does not hold numbers"
    is_allowed = (
        np.isin(array, [0, 1]) if array.dtype.kind == "f" else (array >= 0) & (array <= 255)
    )
    if is_allowed.all():
        return ""
    index = tuple(int(i) for i in np.unravel_index(np.argmin(is_allowed), array.shape))
    return f"holds the value {array[index]} at {list(index)}"
