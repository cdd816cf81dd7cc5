"""Data sets by their names.

A data set is an array in memory, or images in a file of which parts are read (`stored`). To
add one, write its loader and enter it in `DATASETS`, from whatever file.
"""

import dataclasses

import ml_collections
import numpy as np

from experiments.data.dataset import DATASETS, SPLITS, Dataset, describe, needs_labels
from experiments.data.embedded import load_digits, load_photos
from experiments.data.folder import load_folder
from experiments.data.npz import load_npz
from experiments.data.stored import exceeds, pieces
from experiments.data.tfds import load_tfds
from experiments.settings import fields
from experiments.system.errors import UserError
from sere_jax.rules import settings_of

_SETTINGS = settings_of(fields.Dataset)
_OWN = {"digits": load_digits, "photos": load_photos, "npz": load_npz, "folder": load_folder}
DATASETS.update(_OWN)


def load_dataset(
    dataset_config: ml_collections.ConfigDict, data_shape: tuple[int, ...] = ()
) -> Dataset:
    """Loads a data set and holds out its validation examples.

    Args:
      dataset_config: `config.dataset`; those of its fields that are missing have their defaults,
        but nothing is held out without `validation_size`. Its name is one in `DATASETS` (`digits`
        and `photos`, embedded; `npz`, the user's arrays; `folder`, the user's pictures), or an
        image data set of TensorFlow Datasets (TFDS), `name[/config][:version]`.
      data_shape: (height, width, channels) of the model; a loader finds it beside the fields, as
        `dataset_config.data_shape`.

    Raises:
      UserError: If the data set does not exist, is not prepared and cannot be, or is not one of
        images of one shape; if a field of the configuration has an impossible value.
    """
    _check_name_and_path(dataset_config)
    with_shape = ml_collections.ConfigDict(dataset_config.to_dict() | {"data_shape": data_shape})
    dataset = DATASETS.get(dataset_config.name, load_tfds)(with_shape)
    _check_arrays(dataset)
    dataset = _with_labels_if_needed(dataset, dataset_config)
    num_train_examples = dataset_config.get("num_train_examples", 0)
    if num_train_examples < 0:
        raise UserError(
            f"config.dataset.num_train_examples={num_train_examples} is negative; allowed are "
            "0 (all) and positive numbers"
        )
    if num_train_examples:
        dataset = _first_of_training(dataset, num_train_examples)
    return dataset


def _first_of_training(dataset: Dataset, num: int) -> Dataset:
    labels = dataset.labels
    if labels is not None:
        labels = dataclasses.replace(labels, train=labels.train[:num])
    return dataclasses.replace(dataset, train=dataset.train[:num], labels=labels)


def _with_labels_if_needed(dataset: Dataset, dataset_config: ml_collections.ConfigDict) -> Dataset:
    """Checks the labels, or leaves them out."""
    if not needs_labels(dataset_config):
        return dataclasses.replace(dataset, labels=None)
    if dataset.labels is None:
        raise UserError(
            f"config.dataset.condition='label' needs labels, which {dataset.name!r} has not; "
            "choose '' or 'affine', or another data set"
        )
    labels = {split: getattr(dataset.labels, split) for split in SPLITS}
    for split, values in labels.items():
        num, largest = len(getattr(dataset, split)), dataset.labels.num_classes - 1
        if values.shape != (num,) or values.dtype.kind not in "ui":
            raise UserError(
                f"the labels of {split!r} of the data set {dataset.name!r} must be integers "
                f"[{num}], one an image, but they are {describe(values)}"
            )
        if num and not 0 <= values.min() <= values.max() <= largest:
            raise UserError(
                f"the labels of {split!r} of the data set {dataset.name!r} must lie from 0 to "
                f"{largest}, but they are {values.min()} to {values.max()}"
            )
        labels[split] = values.astype(np.int32)
    checked = dataclasses.replace(dataset.labels, **labels)
    return dataclasses.replace(dataset, labels=checked)


def _check_name_and_path(dataset_config: ml_collections.ConfigDict) -> None:
    name, path = dataset_config.name, dataset_config.get("path", "")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"config.dataset.name={name!r} is not a name; allowed are {', '.join(DATASETS)} and "
            "the image data sets of TensorFlow Datasets, for example mnist"
        )
    if path and (name in ("digits", "photos") or name not in DATASETS):
        raise UserError(
            f"config.dataset.path={path!r} means nothing to {name!r}; set it to '', or choose "
            "config.dataset.name=npz or folder"
        )
    for field, is_read in (("image_size", name == "photos"), ("shrink", name not in DATASETS)):
        default = _SETTINGS[field].default
        value = dataset_config.get(field, default)
        is_extension = name in DATASETS and name not in _OWN
        if value != default and not (is_read or is_extension):
            raise UserError(
                f"config.dataset.{field}={value} means nothing to {name!r}; leave it at {default}"
            )


def _check_arrays(dataset: Dataset) -> None:
    """Refuses what a loader must not return."""
    for split in SPLITS:
        images = getattr(dataset, split)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(
                f"the images of the data set {dataset.name!r} must be uint8 [num, height, width, "
                f"channels], but those of {split!r} are {describe(images)}"
            )
        if dataset.max_value < 255 and exceeds(images, dataset.max_value):
            raise UserError(
                f"the data set {dataset.name!r} says that max_value={dataset.max_value} is white, "
                f"but {split!r} holds the value {max(piece.max() for piece in pieces(images))}"
            )
