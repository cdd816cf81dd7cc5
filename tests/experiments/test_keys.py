"""Keys of different purposes do not meet."""

import itertools

import jax
import numpy as np
import pytest

from experiments.training.keys import key_for

PURPOSES = ("init", "train", "validation", "test")


@pytest.mark.parametrize("seed", [0, 1])
def test_each_purpose_draws_its_own(seed):
    """Keys of images, of steps and of parameters are folded from these."""
    folded = {
        purpose: np.asarray(
            jax.random.key_data(
                jax.vmap(lambda i, key=key_for(purpose, seed): jax.random.fold_in(key, i))(
                    np.arange(60_000)
                )
            )
        )
        for purpose in PURPOSES
    }
    keys = {
        purpose: {tuple(key) for key in (*values, jax.random.key_data(key_for(purpose, seed)).tolist())}
        for purpose, values in folded.items()
    }
    for one, other in itertools.combinations(PURPOSES, 2):
        assert not keys[one] & keys[other], (one, other)


def test_test_images_are_those_of_earlier_versions():
    assert key_for("test") == jax.random.key(0)
