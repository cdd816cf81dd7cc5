"""Images of the user: arrays in one file written by `numpy.savez`, or in files by `numpy.save`."""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from experiments.data.dataset import (
    SPLITS,
    Dataset,
    Labels,
    describe,
    needs_labels,
    parts,
)
from experiments.data.stored import Images, StoredImages, exceeds
from experiments.system.errors import UserError
from experiments.system.paths import local_path

_WAY_OUT = "numpy.savez(path, train=images, test=images)"


def load_npz(dataset_config: ml_collections.ConfigDict) -> Dataset:
    """The arrays `train` and optionally `validation` and `test` (else the last 10 % of `train`).

    Each is [num, height, width] or [num, height, width, channels]: integers 0..255, or binary
    images as booleans, as floats 0.0 and 1.0, or as integers 0 and 1 throughout. Where labels are
    needed, `train_labels` and so on hold them, integers [num] from 0.

    `config.dataset.path` is an .npz file, a folder with `train.npy` and so on, or a .npy file that
    is `train`. uint8 images of .npy files stay there, and are read when they are needed.
    """
    path = dataset_config.get("path", "")
    arrays = _read_arrays(path, SPLITS)
    images = {split: _validated_images(split, array) for split, array in arrays.items()}
    is_binary = not any(exceeds(array, 1) for array in images.values())
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
        of_images = Labels(*parts(labels, dataset_config), num_classes)
    max_value = 1 if is_binary else 255
    return Dataset("npz", *parts(images, dataset_config), max_value, of_images)


def _read_labels(path: str, images: Mapping[str, Images]) -> dict[str, np.ndarray]:
    """The arrays `train_labels` and so on of the splits of `images`."""
    found = _read_arrays(path, ("train", *(f"{split}_labels" for split in images)))
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


def _read_arrays(path: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns `train`, which must exist, and those of the other arrays that do."""
    try:
        source = local_path(path, "config.dataset.path")
        is_file = source.is_file()
        is_folder = (source / "train.npy").is_file()
    except (OSError, ValueError):  # Too long a name, a null byte.
        is_file = is_folder = False
    if not path or not (is_file or is_folder):
        raise UserError(
            f"config.dataset.path={path!r} is not a file, and no folder with train.npy; name a "
            f"file written by {_WAY_OUT}; for a folder of pictures set config.dataset.name=folder"
        )
    if is_folder:
        files = {name: source / f"{name}.npy" for name in names}
        return {name: _read_npy(file) for name, file in files.items() if file.is_file()}
    if source.suffix == ".npy":
        return {"train": _read_npy(source)}
    return _read_npz(source, names)


def _read_npy(file: pathlib.Path) -> Any:
    """An array of `numpy.save`; images of uint8 stay in the file."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise ValueError("it is no .npy file")
    except Exception as error:  # Pickled objects, less data than the header says...
        raise UserError(
            f"{file} is not a readable .npy file of a plain array ({error}); "
            "write it by numpy.save(path, images)"
        ) from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.flags.c_contiguous:
        return np.array(array)
    return StoredImages(file, array.offset, (*array.shape, 1)[:4])


def _read_npz(npz_file: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
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


def _validated_images(split: str, array: Any) -> Images:
    """Returns the array as uint8 [num, height, width, channels]."""
    if isinstance(array, StoredImages) and array.size:
        return array
    problem = _problem_of(array)
    if problem:
        raise UserError(
            f"the array {split!r} ({describe(array)}) {problem}; allowed are [num, height, "
            "width] or [num, height, width, channels] of uint8 0..255, or binary images as "
            "booleans or as floats 0.0 and 1.0: convert it and save it again"
        )
    images = array.astype(np.uint8)
    return images if images.ndim == 4 else images[..., np.newaxis]


def _problem_of(array: Any) -> str:
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
