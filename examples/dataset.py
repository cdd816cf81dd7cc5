"""Discs, squares and diamonds of random sizes at random places, drawn here: no download."""

import numpy as np

from configs import digits
from experiments.data import DATASETS, Dataset, split_validation

SIZE = 16  # of the images, in pixels
NUM_TRAIN, NUM_TEST = 5000, 1000


def load_shapes(dataset_config):
    """[num, 16, 16, 1] grey levels; validation images are the last ones of the training set."""
    # Only this stream is the same in all versions of NumPy: a run must recognize its data.
    generator = np.random.RandomState(0)
    images = np.stack([_draw(generator) for _ in range(NUM_TRAIN + NUM_TEST)])[..., None]
    train, validation = split_validation(images[:NUM_TRAIN], dataset_config)
    return Dataset("shapes", train, validation, images[NUM_TRAIN:], max_value=255)


def _draw(generator):
    radius = generator.uniform(2, 5)
    centre = generator.uniform(radius, SIZE - 1 - radius, 2)
    x, y = np.abs(np.indices((SIZE, SIZE)) - centre[:, None, None])
    distance = (np.hypot(x, y), np.maximum(x, y), x + y)[generator.randint(3)]
    return np.uint8(255 * np.clip(radius - distance + 0.5, 0, 1))  # half a pixel is half as bright


DATASETS["shapes"] = load_shapes


def get_config(variant=""):
    """Of `python -m experiments.main --config=examples/dataset.py`."""
    config = digits.get_config(variant)
    config.dataset.name, config.model.data_shape = "shapes", (SIZE, SIZE, 1)
    return config
