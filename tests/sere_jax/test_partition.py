"""Partitions of the image, against slices of numpy arrays."""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sere_jax
from sere_jax.config import ConfigError, ModelConfig
from sere_jax.partition import (
    PARTITIONS,
    checkerboard,
    create_partition,
    previous_blocks,
    raster,
    tiles,
)


def numbered(*shape):
    """Distinct values, none of them the 0 of the padding."""
    return np.arange(1.0, 1.0 + math.prod(shape), dtype=np.float32).reshape(shape)


@st.composite
def shapes(draw, name):
    size = st.integers(1, 5)
    height, width, channels = draw(size), draw(size), draw(st.integers(1, 3))
    if name == "raster":
        num_layers = draw(st.integers(1, height * width))
    else:
        side = draw(st.integers(1, 3))
        height, width, num_layers = side * height, side * width, side * side
    return (height, width, channels), num_layers


@pytest.mark.parametrize("name", sorted(PARTITIONS))
@given(data=st.data(), batch_shape=st.lists(st.integers(1, 2), max_size=2))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_every_pixel_is_in_one_block_and_merge_puts_it_back(name, data, batch_shape):
    data_shape, num_layers = data.draw(shapes(name))
    partition = PARTITIONS[name](data_shape, num_layers)
    x = numbered(*batch_shape, *partition.data_shape)

    blocks = np.asarray(partition.split(x))

    assert blocks.shape == (num_layers, *batch_shape, *partition.block_shape)
    between = tuple(range(1, 1 + len(batch_shape)))
    mask = np.broadcast_to(np.expand_dims(partition.mask, between), blocks.shape) == 1
    np.testing.assert_array_equal(np.sort(blocks[mask]), x.ravel())
    np.testing.assert_array_equal(blocks[~mask], 0)
    np.testing.assert_array_equal(partition.merge(blocks), x)


@given(data=st.data(), name=st.sampled_from(sorted(PARTITIONS)))
@settings(deadline=None, derandomize=True)
def test_only_the_last_block_is_padded_and_no_block_is_empty(data, name):
    data_shape, num_layers = data.draw(shapes(name))
    partition = PARTITIONS[name](data_shape, num_layers)
    num_pixels = partition.data_shape[0] * partition.data_shape[1]
    sizes = partition.mask.sum(axis=(1, 2, 3))

    present = partition.pixels[partition.mask[..., 0] == 1]
    np.testing.assert_array_equal(np.sort(present), np.arange(num_pixels))
    length = math.ceil(num_pixels / num_layers)
    assert partition.block_shape[0] * partition.block_shape[1] == length
    if (num_layers - 1) * length < num_pixels:
        assert (sizes[:-1] == length).all()
    else:  # runs of that length would leave the last one empty
        assert (np.diff(sizes) <= 0).all() and sizes[-1] == length - 1
    assert sizes[-1] >= 1
    assert partition.mask.shape == (num_layers, *partition.block_shape[:2], 1)
    assert partition.mask.dtype == np.float32


def test_raster_cuts_mnist_into_nine_runs_of_79_pixels_and_one_of_73():
    partition = raster((28, 28, 1), 10)
    x = numbered(28, 28, 1)

    blocks = partition.split(x)

    assert partition.mask.sum(axis=(1, 2, 3)).tolist() == [79] * 9 + [73]
    runs = np.split(x.ravel(), np.arange(79, 784, 79))
    for block, run in zip(np.asarray(blocks), runs, strict=True):
        np.testing.assert_array_equal(block.ravel(), np.pad(run, (0, 79 - run.size)))


def test_checkerboard_blocks_are_sub_lattices_in_row_major_order():
    x = numbered(2, 6, 9, 3)

    blocks = checkerboard((6, 9, 3), 9).split(x)

    expected = [x[:, i::3, j::3] for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(blocks, np.stack(expected))


@pytest.mark.parametrize("create", [raster, checkerboard, tiles])
def test_the_layer_of_a_pixel_is_that_of_the_block_which_holds_it(create):
    partition = create((6, 9, 1), 9)

    layers = partition.layer_of_pixel

    blocks = partition.split(1.0 + layers[..., None])
    expected = (1.0 + np.arange(9))[:, None, None, None] * partition.mask
    np.testing.assert_array_equal(blocks, expected)


def test_tiles_are_contiguous_patches_in_row_major_order():
    x = numbered(2, 6, 9, 3)

    blocks = tiles((6, 9, 3), 9).split(x)

    expected = [x[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3] for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(blocks, np.stack(expected))


@pytest.mark.parametrize("name", ["checkerboard", "tiles"])
@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_in_boustrophedon_order_each_block_is_a_neighbour_of_the_one_before(
    tiny_config, name, side
):
    shape = (2 * side, 3 * side, 2)
    config = tiny_config(
        partition=name, num_layers=side**2, data_shape=shape, block_order="boustrophedon"
    )
    plain = PARTITIONS[name](shape, side**2)
    partition = create_partition(config)
    x = numbered(5, *shape)

    blocks = np.asarray(partition.split(x))

    places = [(i, j if i % 2 == 0 else side - 1 - j) for i in range(side) for j in range(side)]
    of_raster = np.asarray(plain.split(x)).reshape(side, side, *blocks.shape[1:])
    np.testing.assert_array_equal(blocks, [of_raster[place] for place in places])
    assert sorted(places) == [(i, j) for i in range(side) for j in range(side)]
    assert (np.abs(np.diff(places, axis=0)).sum(axis=1) == 1).all()
    np.testing.assert_array_equal(partition.merge(blocks), x)
    layers = partition.split(1.0 + partition.layer_of_pixel[..., None].repeat(2, axis=-1))
    expected = np.arange(1.0, 1.0 + side**2)[:, None, None, None]
    np.testing.assert_array_equal(layers, np.broadcast_to(expected, layers.shape))
    before = np.asarray(previous_blocks(blocks, 1))[:, :, 0]
    expected = np.reshape([of_raster[place] for place in places[:-1]], before[1:].shape)
    np.testing.assert_array_equal(before[1:], expected)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_along_the_curve_of_hilbert_neighbours_follow_each_other(tiny_config, side):
    places = places_of_layers(tiny_config, side, "hilbert")
    assert len({*places}) == side**2
    assert (np.abs(np.diff(places, axis=0)).sum(axis=1) == 1).all()
    for part in np.split(np.array(places), 4) if side > 1 else ():
        assert (np.ptp(part, axis=0) == side // 2 - 1).all()  # a quadrant after another


@pytest.mark.parametrize("side", [2, 4, 8])
def test_the_first_layers_from_coarse_to_fine_are_a_coarser_pattern(tiny_config, side):
    places = places_of_layers(tiny_config, side, "coarse_to_fine")
    assert len({*places}) == side**2
    coarser = places_of_layers(tiny_config, side // 2, "coarse_to_fine")
    assert places[: len(coarser)] == [(2 * i, 2 * j) for i, j in coarser]
    assert places[len(coarser) :] == sorted(places[len(coarser) :])


def places_of_layers(tiny_config, side, block_order):
    """Where in the pattern the block of each layer stands."""
    config = tiny_config(
        partition="checkerboard",
        num_layers=side**2,
        data_shape=(side, side, 1),
        block_order=block_order,
    )
    layers = create_partition(config).layer_of_pixel
    return [tuple(np.argwhere(layers == layer)[0].tolist()) for layer in range(side**2)]


@pytest.mark.parametrize("block_order", ["raster", "boustrophedon", "hilbert", "coarse_to_fine"])
def test_a_checkerboard_of_mnist_has_sixteen_layers(block_order):
    fields = {"data_shape": (28, 28, 1), "num_layers": 16, "latent_shape": (6,), "hidden_size": 8}
    config = ModelConfig(**fields, partition="checkerboard", block_order=block_order)
    model = sere_jax.create_model(config)
    shapes = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    x = np.random.default_rng(0).integers(0, 2, (3, 28, 28, 1)).astype(np.float32)

    elbo = sere_jax.elbo(model, params, x, jax.random.key(1))

    assert model.noise_shape == (16, 6) and create_partition(config).block_shape == (7, 7, 1)
    kl = 16 * 6 * (0.73**2 / 2 - np.log(0.73) - 0.5)  # where all parameters are 0
    np.testing.assert_allclose(elbo, -784 * np.log(2) - kl, rtol=1e-4)


@pytest.mark.parametrize("batch_shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_layer_sees_the_blocks_before_it_newest_last_and_zeros_before_the_first(
    batch_shape, count
):
    num_layers, block_shape = 4, (1, 2, 1)
    blocks = numbered(num_layers, *batch_shape, *block_shape)

    previous = previous_blocks(blocks, count)

    assert previous.shape == (num_layers, *batch_shape, count, *block_shape)
    for layer in range(num_layers):
        for place in range(count):
            source = layer - count + place
            expected = blocks[source] if source >= 0 else 0
            np.testing.assert_array_equal(previous[layer, ..., place, :, :, :], expected)


@pytest.mark.parametrize(
    ("overrides", "value", "way_out", "accepted"),
    [
        ({"num_layers": 7}, "num_layers=7", "choose 1 to 6", {"num_layers": 6}),
        (
            {"partition": "tiles", "data_shape": (4, 4, 1), "num_layers": 5},
            "num_layers=5",
            "choose 4 or 9, or partition='raster'",
            {"partition": "tiles", "data_shape": (4, 4, 1), "num_layers": 4},
        ),
        (
            {"partition": "checkerboard", "num_layers": 3},
            "num_layers=3",
            "choose 1 or 4, or partition='raster'",
            {"partition": "raster", "num_layers": 3},
        ),
        (
            {"partition": "checkerboard", "num_layers": 4},
            "num_layers=4",
            "multiples of sqrt(num_layers): choose one of [1]",
            {"partition": "checkerboard", "data_shape": (2, 4, 1), "num_layers": 4},
        ),
        (
            {"partition": "tiles", "data_shape": (3, 2, 1), "num_layers": 4},
            "3x2 image",
            "multiples of sqrt(num_layers): choose one of [1]",
            {"partition": "tiles", "data_shape": (4, 2, 1), "num_layers": 4},
        ),
        ({"partition": "rastr"}, "partition='rastr'", "'raster'?", {"partition": "raster"}),
        ({"partition": "x"}, "partition='x'", "checkerboard, raster, tiles", {}),
    ],
)
def test_an_impossible_partition_is_refused_and_the_proposed_way_out_works(
    tiny_config, overrides, value, way_out, accepted
):
    with pytest.raises(ConfigError) as refusal:
        create_partition(tiny_config(**overrides))

    assert value in str(refusal.value)
    assert way_out in str(refusal.value)
    assert create_partition(tiny_config(**accepted)).num_layers >= 1
