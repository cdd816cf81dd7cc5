"""Images of the user, in one file written by `numpy.savez`."""

import zipfile

import ml_collections
import numpy as np

from experiments.data.dataset import Dataset, describe, split_validation
from experiments.system.errors import UserError
from experiments.system.paths import local_path

_TEST_FRACTION = 0.1
_WAY_OUT = "numpy.savez(path, train=images, test=images)"


def load_npz(dataset_config: ml_collections.ConfigDict) -> Dataset:
    """The arrays `train` and optionally `validation` and `test` (else the last 10 % of `train`).

    Each is [num, height, width] or [num, height, width, channels]: integers 0..255, or binary
    images as booleans, as floats 0.0 and 1.0, or as integers 0 and 1 throughout.
    """
    arrays = _read_npz(dataset_config.get("path", ""))
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
    train, test, validation = images["train"], images.get("test"), images.get("validation")
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
    return Dataset("npz", train, validation, test, max_value=1 if is_binary else 255)


def _read_npz(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays `train` and, where they exist, `validation` and `test`."""
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
            names = list(content)
            arrays = {
                split: content[split] for split in ("train", "validation", "test") if split in names
            }
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
            f"{npz_file} has no array 'train', it has {', '.join(names) or 'none'}; "
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
