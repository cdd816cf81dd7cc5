"""Data sets that come with scikit-learn, without any download: digits and photographs."""

import importlib.util
import pathlib

import ml_collections
import numpy as np

from experiments.data.dataset import Dataset, Labels, num_validation_examples, split_validation
from experiments.system.errors import UserError

# The digits were collected on forms, one after the other in the file; a form begins here.
_FIRST_TEST_DIGIT = 1415

# The regions of each photograph, from left to right, as fractions of its width.
_PHOTO_TRAIN_FRACTION = 0.60
_PHOTO_VALIDATION_FRACTION = 0.15


def load_digits(dataset_config: ml_collections.ConfigDict) -> Dataset:
    """Scikit-learn's handwritten digits, 8x8x1 with grey levels 0..16.

    They were collected on forms of about 130 digits, stored one form after the other; the last
    three forms (382 digits) are the test set. Shuffled before, digits of one hand would be on both
    sides.
    """
    # Importing scikit-learn takes longer than all else up to the first step of a small run.
    sklearn = importlib.util.find_spec("sklearn")
    assert sklearn is not None and sklearn.origin is not None
    file = pathlib.Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 64 pixels and the label
    images = rows[:, :-1].reshape(-1, 8, 8, 1)
    train, test = np.split(images, [_FIRST_TEST_DIGIT])
    train, validation = split_validation(train, dataset_config)
    digits = np.split(rows[:, -1], [len(train), _FIRST_TEST_DIGIT])
    labels = Labels(digits[0], digits[1], digits[2], num_classes=10)
    return Dataset("digits", train, validation, test, max_value=16, labels=labels)


def load_photos(dataset_config: ml_collections.ConfigDict) -> Dataset:
    """Square colour patches of scikit-learn's two sample photographs.

    The left 60 % of each photograph gives the training patches (overlapping, in a fixed random
    order), the next 15 % the validation patches and the right 25 % the test patches (side by side,
    for honest standard errors): no pixel is in two of the sets. `config.dataset.validation_size`
    patches (at most all) are taken evenly from the validation region, a fraction being one of the
    number of training patches.
    """
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
    num_validation = min(num_validation_examples(dataset_config, len(train)), len(validation))
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
