"""Cutting an image x into the blocks x_1 .. x_L that the layers generate (paper, section 4)."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from sere_jax.arrays import Array
from sere_jax.config import ConfigError, ModelConfig, choose

DataShape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """A table that says which pixel stands where in which block."""

    data_shape: DataShape  # (height, width, channels) of the image
    # [L, h, w] int32, row-major index of the pixel at each place of each block; `num_pixels`
    # marks padding (of shorter blocks of `raster`).
    pixels: np.ndarray

    def __post_init__(self) -> None:
        # JAX remembers the type that it read an array of int64 with, whatever `jax_enable_x64` is.
        object.__setattr__(self, "pixels", self.pixels.astype(np.int32))

    @property
    def num_layers(self) -> int:
        """L, the number of blocks."""
        return self.pixels.shape[0]

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the image."""
        return self.data_shape[0] * self.data_shape[1]

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """(h, w, channels) of every block."""
        _, height, width = self.pixels.shape
        return (height, width, self.data_shape[2])

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """[L, h, w, 1] float32: 1 where a block holds a pixel, 0 where it is padding."""
        return (self.pixels < self.num_pixels)[..., None].astype(np.float32)

    @functools.cached_property
    def layer_of_pixel(self) -> np.ndarray:
        """[height, width] int: the layer, from 0 to L - 1, whose block holds each pixel."""
        layers = np.broadcast_to(np.arange(self.num_layers)[:, None, None], self.pixels.shape)
        image = np.empty(self.num_pixels + 1, int)
        image[self.pixels] = layers
        return image[:-1].reshape(self.data_shape[:2])

    @functools.cached_property
    def place_of_pixel(self) -> np.ndarray:
        """[pixels] int32: where in the blocks, one after another, each pixel stands."""
        order = np.argsort(self.pixels.reshape(-1), kind="stable")[: self.num_pixels]
        return order.astype(np.int32)

    def split(
        self, x: Shaped[Array, "*batch height width channels"]
    ) -> Shaped[Array, "layers *batch h w channels"]:
        """Cuts x into blocks; padding is 0."""
        batch_shape = x.shape[:-3]
        flat = x.reshape(*batch_shape, self.num_pixels, self.data_shape[2])
        padding = [(0, 0)] * len(batch_shape) + [(0, 1), (0, 0)]
        return jnp.moveaxis(jnp.pad(flat, padding)[..., self.pixels, :], -4, 0)

    def merge(
        self, blocks: Shaped[Array, "layers *batch h w channels"]
    ) -> Shaped[Array, "*batch height width channels"]:
        """Inverse of `split`; padding is dropped."""
        blocks = jnp.moveaxis(blocks, 0, -4)
        batch_shape = blocks.shape[:-4]
        flat = blocks.reshape(*batch_shape, self.pixels.size, self.data_shape[2])
        return flat[..., self.place_of_pixel, :].reshape(*batch_shape, *self.data_shape)


def raster(data_shape: DataShape, num_layers: int) -> Partition:
    """Runs of ceil(pixels / L) pixels, left to right, top to bottom; the last run is shorter.

    Where that would leave a last run without pixels (784 pixels in 100 runs of 8), the runs are as
    even as they can be instead: the first ones have a pixel more than the others. Blocks have the
    shape (1, ceil(pixels / L), channels).
    """
    num_pixels = data_shape[0] * data_shape[1]
    if num_layers > num_pixels:
        raise ConfigError(
            f"config.model.num_layers={num_layers} exceeds the {num_pixels} pixels of a "
            f"{data_shape[0]}x{data_shape[1]} image; choose 1 to {num_pixels}"
        )
    length = math.ceil(num_pixels / num_layers)
    order = np.arange(num_pixels)
    if (num_layers - 1) * length < num_pixels:
        runs = [order[start : start + length] for start in range(0, num_pixels, length)]
    else:
        runs = np.array_split(order, num_layers)
    pixels = np.stack(
        [np.pad(run, (0, length - len(run)), constant_values=num_pixels) for run in runs]
    )
    return Partition(data_shape, pixels[:, None])


def checkerboard(data_shape: DataShape, num_layers: int) -> Partition:
    """Interleaved sub-lattices x[i::s, j::s] of an s x s pattern, L = s^2, in row-major order."""
    side = _pattern_side("checkerboard", data_shape, num_layers)
    pixels = _pixel_indices(data_shape)
    return Partition(
        data_shape,
        np.stack([pixels[i::side, j::side] for i in range(side) for j in range(side)]),
    )


def tiles(data_shape: DataShape, num_layers: int) -> Partition:
    """Contiguous patches of an s x s grid, L = s^2, in row-major order."""
    side = _pattern_side("tiles", data_shape, num_layers)
    pixels = _pixel_indices(data_shape)
    rows = np.split(pixels, side, axis=0)
    return Partition(
        data_shape, np.stack([tile for row in rows for tile in np.split(row, side, axis=1)])
    )


PARTITIONS: dict[str, Callable[[DataShape, int], Partition]] = {
    "raster": raster,
    "checkerboard": checkerboard,
    "tiles": tiles,
}


def create_partition(config: ModelConfig) -> Partition:
    """The partition of `config`.

    Raises:
        ConfigError: unknown name, or L does not fit the image.
    """
    create = choose("partition", config.partition, PARTITIONS)
    return _built_once(create, config.data_shape, config.num_layers, config.block_order)


@functools.lru_cache
def _built_once(
    create: Callable[[DataShape, int], Partition],
    data_shape: DataShape,
    num_layers: int,
    block_order: str,
) -> Partition:
    partition = create(data_shape, num_layers)
    if block_order == "raster":
        return partition
    order = BLOCK_ORDERS[block_order](math.isqrt(num_layers))
    return Partition(data_shape, partition.pixels[order])


def boustrophedon(side: int) -> np.ndarray:
    """[s^2] row-major indices of an s x s pattern, every other row from right to left."""
    rows = np.arange(side * side).reshape(side, side)
    rows[1::2] = rows[1::2, ::-1].copy()
    return rows.reshape(-1)


def hilbert(side: int) -> np.ndarray:
    """[s^2] row-major indices along a curve of Hilbert (1891), for s a power of two.

    Each is a neighbour of the one before, and those of a quadrant follow each other.
    """
    table = np.zeros((1, 1), int)  # the number at which the curve comes to each place
    while len(table) < side:
        step = table.size
        left, right = table.T, step + table
        lower_left, lower_right = 3 * step + np.rot90(table, 2).T, 2 * step + table
        table = np.block([[left, right], [lower_left, lower_right]])
    return np.argsort(table, axis=None)


def coarse_to_fine(side: int) -> np.ndarray:
    """[s^2] row-major indices, for s a power of two: at first those of the (s/2) x (s/2) pattern
    of every other row and column, in this order too; then the others, row by row.
    """
    rows = np.arange(side * side).reshape(side, side)
    if side == 1:
        return rows.reshape(-1)
    coarse = rows[::2, ::2].reshape(-1)[coarse_to_fine(side // 2)]
    return np.concatenate([coarse, np.setdiff1d(rows, coarse)])


BLOCK_ORDERS = {
    "boustrophedon": boustrophedon,
    "hilbert": hilbert,
    "coarse_to_fine": coarse_to_fine,
}


def previous_blocks(
    blocks: Shaped[Array, "layers *batch h w channels"], count: int
) -> Shaped[Array, "layers *batch count h w channels"]:
    """The blocks x_{l-count} .. x_{l-1} that each layer sees; those before the first are 0."""
    num_layers = blocks.shape[0]
    padded = jnp.pad(blocks, [(count, 0)] + [(0, 0)] * (blocks.ndim - 1))
    windows = [padded[i : i + num_layers] for i in range(count)]
    return jnp.stack(windows, axis=-4)


def blocks_around(
    blocks: Shaped[Array, "layers *batch h w channels"],
) -> Shaped[Array, "layers *batch 3 h w channels"]:
    """x_{l-1}, x_l and x_{l+1} of each layer; those before the first and after the last are 0."""
    padded = jnp.pad(blocks, [(1, 1)] + [(0, 0)] * (blocks.ndim - 1))
    return jnp.stack([padded[:-2], blocks, padded[2:]], axis=-4)


def _pixel_indices(data_shape: DataShape) -> np.ndarray:
    height, width, _ = data_shape
    return np.arange(height * width).reshape(height, width)


def _pattern_side(name: str, data_shape: DataShape, num_layers: int) -> int:
    side = math.isqrt(num_layers)
    height, width, _ = data_shape
    if side * side != num_layers:
        raise ConfigError(
            f"config.model.num_layers={num_layers} is not a square, which the partition {name!r} "
            f"needs; choose {side * side} or {(side + 1) ** 2}, or partition='raster'"
        )
    if height % side or width % side:
        common = math.gcd(height, width)
        fitting = [s * s for s in range(1, common + 1) if common % s == 0]
        raise ConfigError(
            f"config.model.num_layers={num_layers} cuts a {height}x{width} image into a "
            f"{side}x{side} pattern, which does not divide it; the partition {name!r} needs "
            f"height and width to be multiples of sqrt(num_layers): choose one of {fitting}"
        )
    return side
