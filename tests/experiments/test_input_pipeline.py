"""Shuffling and flips."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import input_pipeline


def test_every_epoch_visits_every_example_once_in_its_own_order():
    orders = [
        np.asarray(input_pipeline.epoch_order(jax.random.key(0), epoch, 100)) for epoch in (0, 1)
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert not np.array_equal(*orders)


def test_half_of_the_images_are_mirrored():
    images = jnp.arange(6, dtype=jnp.uint8).reshape(1, 2, 3, 1)
    images = jnp.broadcast_to(images, (1000, 2, 3, 1))
    flipped = np.asarray(
        input_pipeline.flip_horizontally(images, jax.random.split(jax.random.key(0), 1000))
    )
    mirrored = np.all(flipped == np.asarray(images)[:, :, ::-1], axis=(1, 2, 3))
    same = np.all(flipped == np.asarray(images), axis=(1, 2, 3))
    assert np.all(mirrored ^ same)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)
