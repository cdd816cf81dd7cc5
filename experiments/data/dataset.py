"""A data set as arrays of uint8, and what is held out of it."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import ml_collections
import numpy as np

from experiments.data.stored import Images, StoredImages, pieces
from experiments.system.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The classes of the images of a data set, int32 [num] from 0 to num_classes - 1."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    num_classes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set of images of one shape.

    Attributes:
      name: The name it was loaded by.
      train: uint8 [num, height, width, channels], values 0..max_value; an array, or images that
        stay in their file.
      validation: The same for the held-out training examples; num is 0 if none was held out.
      test: The same for the test examples.
      max_value: The brightest value: 255, 16 for `digits`, 1 for binary images.
      labels: The classes, if the data set has any and `config.dataset.condition` asks for them.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    max_value: int
    labels: Labels | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on all images, labels and their order, not the name."""
        digest = hashlib.sha256(f"max_value={self.max_value}".encode())
        for part in (self, self.labels):
            for values in () if part is None else (part.train, part.validation, part.test):
                digest.update(str(values.shape).encode())
                for piece in pieces(values):
                    digest.update(np.ascontiguousarray(piece).data)
        return digest.hexdigest()[:16]


Values = TypeVar("Values", np.ndarray, StoredImages, Images)

SPLITS = ("train", "validation", "test")
_TEST_FRACTION = 0.1  # of the images for training, where there are none for testing

# Loaders by the names of their data sets; a file of yours may enter another one.
DATASETS: dict[str, Callable[[ml_collections.ConfigDict], Dataset]] = {}


def needs_labels(dataset_config: ml_collections.ConfigDict) -> bool:
    """Whether the model is conditional on the class of an image."""
    return dataset_config.get("condition", "") == "label"


def split_validation(
    train: Values, dataset_config: ml_collections.ConfigDict
) -> tuple[Values, Values]:
    """Returns (the first, the last) training examples, as `config.dataset.validation_size` says.

    Raises:
      UserError: If it is impossible, or leaves nothing to train on.
    """
    num_validation = num_validation_examples(dataset_config, len(train))
    if num_validation >= len(train):
        raise UserError(
            f"config.dataset.validation_size={dataset_config.validation_size} leaves nothing of "
            f"the {len(train)} training examples of {dataset_config.name!r}; hold out fewer than "
            f"{len(train)}, or use more images"
        )
    num_train = len(train) - num_validation
    return train[:num_train], train[num_train:]


def parts(
    arrays: Mapping[str, Values], dataset_config: ml_collections.ConfigDict
) -> tuple[Values, Values, Values]:
    """What is to train, to validate and to test, the latter two held out if need be."""
    train, test, validation = arrays["train"], arrays.get("test"), arrays.get("validation")
    if test is None:
        num_test = max(1, round(_TEST_FRACTION * len(train)))
        if num_test >= len(train):
            raise UserError(
                f"'train' ({describe(train)}) is too small to hold out a test set; save a split "
                "'test' as well, or more images"
            )
        train, test = train[:-num_test], train[-num_test:]
    if validation is None:
        train, validation = split_validation(train, dataset_config)
    return train, validation, test


def num_validation_examples(dataset_config: ml_collections.ConfigDict, num_train: int) -> int:
    """How many examples `config.dataset.validation_size` holds out of `num_train`."""
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


def describe(array: Images) -> str:
    """Type and shape, for messages."""
    return f"{array.dtype}, shape {list(array.shape)}"
