"""Shuffling and augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs import base
from experiments.data import input_pipeline


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


def random_affine_maps(num):
    keys = jax.random.split(jax.random.key(0), num)
    parameters = jax.vmap(input_pipeline.random_parameters)(keys)
    return jax.vmap(input_pipeline.affine_map)(parameters)


@pytest.mark.parametrize(("contrast", "max_value"), [(1.0, 255), (1.4, 255), (1.4, 16)])
def test_affine_maps_agree_with_scipy(contrast, max_value):
    rng = np.random.default_rng(0)
    for matrix, shift in zip(*random_affine_maps(20), strict=True):
        image = rng.integers(0, max_value + 1, (9, 12, 2)).astype(np.uint8)
        found = np.asarray(
            input_pipeline.transform(jnp.asarray(image), matrix, shift, contrast, max_value)
        )
        assert found.dtype == np.uint8
        middle = (np.array(image.shape[:2]) - 1) / 2
        offset = middle + np.asarray(shift) - np.asarray(matrix) @ middle
        for channel in range(2):
            expected = ndimage.affine_transform(
                image[..., channel].astype(np.float64),
                np.asarray(matrix, np.float64),
                offset,
                order=1,
                mode="grid-constant",
            )
            grey = max_value / 2
            expected = np.clip(grey + contrast * (expected - grey), 0, max_value)
            np.testing.assert_allclose(found[..., channel], expected, atol=0.51)


def test_random_affine_maps_stay_within_their_bounds_and_are_those_of_each_sign():
    matrices, shifts = map(np.asarray, random_affine_maps(5000))
    angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    upper = np.stack(
        [
            np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) @ matrix
            for a, matrix in zip(angles, matrices, strict=True)
        ]
    )
    drawn = {
        input_pipeline.ROTATION: [angles],
        input_pipeline.SCALE: [upper[:, 0, 0] - 1, upper[:, 1, 1] - 1],
        input_pipeline.SHEAR: [upper[:, 0, 1]],
        input_pipeline.SHIFT: list(shifts.T),
    }
    np.testing.assert_allclose(upper[:, 1, 0], 0.0, atol=1e-6)
    for bound, values in drawn.items():
        for value in values:
            assert np.abs(value).max() <= bound * (1 + 1e-5)
            assert abs(value.mean()) < 4 * bound / np.sqrt(3 * 5000)
            assert value.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_as_many_images_are_transformed_as_the_share_says(share):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (1000, 8, 8, 1)).astype(np.uint8))
    keys = jax.random.split(jax.random.key(1), 1000)
    found, parameters = map(np.asarray, input_pipeline.transform_at_random(images, keys, share))
    changed = np.any(found != np.asarray(images), axis=(1, 2, 3))
    assert abs(changed.mean() - share) <= 4 * np.sqrt(share * (1 - share) / 1000)
    alone, own = input_pipeline.transform_at_random(images[7:8], keys[7:8], share)
    np.testing.assert_array_equal(found[7:8], alone)
    np.testing.assert_array_equal(parameters[7:8], own)


def affine_dataset(**fields):
    config = base.get_config().dataset
    config.update(fields)
    return config


@pytest.mark.parametrize(("contrast", "max_value"), [(1.0, 255), (1.4, 16)])
def test_the_condition_of_an_image_says_how_it_was_transformed(contrast, max_value):
    dataset = affine_dataset(condition="affine", random_affine=0.6, affine_contrast=contrast)
    augment = input_pipeline.augmentation(dataset, affine_until=5, max_value=max_value)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, max_value + 1, (200, 6, 5, 2)).astype(np.uint8))
    keys = jax.random.split(jax.random.key(3), 200)

    found, condition = augment(images, keys, jnp.int32(4))

    def again(image, parameters):
        matrix, shift = input_pipeline.affine_map(parameters)
        return input_pipeline.transform(image, matrix, shift, contrast, max_value)

    is_transformed = np.any(np.asarray(condition) != 0, axis=1)
    assert 80 < is_transformed.sum() < 160
    expected = jnp.where(
        is_transformed[:, None, None, None], jax.vmap(again)(images, condition), images
    )
    # Rounding may tip over where the two programs differ in the last digit.
    assert np.abs(np.int32(found) - np.int32(expected)).max() <= 1
    assert np.mean(np.asarray(found) != np.asarray(expected)) < 1e-3
    drawn = np.asarray(condition)[is_transformed]
    assert np.abs(drawn).max() <= 1 and (np.abs(drawn).max(axis=0) > 0.9).all()
    assert (drawn.min(axis=0) < -0.9).all()

    later, condition = augment(images, keys, jnp.int32(5))
    np.testing.assert_array_equal(later, images)
    np.testing.assert_array_equal(condition, np.zeros((200, 6)))


def test_zeros_are_the_identity_and_other_settings_have_no_condition():
    matrix, shift = input_pipeline.affine_map(jnp.zeros(6))
    np.testing.assert_array_equal(matrix, np.eye(2))
    np.testing.assert_array_equal(shift, np.zeros(2))
    images, keys = jnp.zeros((3, 4, 4, 1), jnp.uint8), jax.random.split(jax.random.key(0), 3)
    for fields in ({}, {"random_affine": 0.5}, {"random_affine": 0.5, "condition": "label"}):
        augment = input_pipeline.augmentation(affine_dataset(**fields), 5, 255)
        assert augment(images, keys, jnp.int32(0))[1] is None
