"""Keys of different purposes do not meet."""

import itertools

import jax
import numpy as np
import pytest

from experiments.training.keys import key_for, purpose_of

PURPOSES = ("init", "train", *map(purpose_of, ("train", "validation", "test")))


def keys_of(purpose, seed):
    """The key of a purpose, and those of images, steps or layers that are folded from it."""
    key = key_for(purpose, seed)
    folded = jax.vmap(lambda index: jax.random.fold_in(key, index))(np.arange(60_000))
    data = [jax.random.key_data(key)[None], jax.random.key_data(folded)]
    return set(map(tuple, np.concatenate(data).tolist()))


@pytest.mark.parametrize("seed", [0, 1])
def test_each_purpose_draws_its_own(seed):
    keys = {purpose: keys_of(purpose, seed) for purpose in PURPOSES}
    for one, other in itertools.combinations(PURPOSES, 2):
        assert not keys[one] & keys[other], (one, other)


def test_test_images_are_those_of_earlier_versions():
    assert key_for("test") == jax.random.key(0)
