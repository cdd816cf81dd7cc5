"""Residual networks: convolutional where codes are maps, dense where they are vectors.

With `latent_shape` (h, w, c) everything is computed on maps of h x w positions; images enter by
moving the pixels of each position to its channels. With `latent_shape` (n,) codes and
blocks are vectors. Convolutional are then the encoder of the whole image and, with `data_channels`,
the data layers.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from sere_jax.arrays import Array, flatten
from sere_jax.config import ConfigError, ModelConfig
from sere_jax.networks.activations import elu, tanh
from sere_jax.networks.initializers import head_initializer
from sere_jax.networks.mlp import MLPNetwork, MLPRefinement, plus_condition
from sere_jax.networks.products import (
    Dense,
    contract,
    current_precision,
    gradient_of_kernel,
    rounded,
)
from sere_jax.partition import create_partition

KERNEL_SIZE = 3


class Conv(nn.Module):
    """3x3 convolution with zero padding, over maps [..., h, w, channels]."""

    features: int  # channels of the result

    @nn.compact
    def __call__(
        self, maps: Float[Array, "*batch h w channels"]
    ) -> Float[Array, "*batch h w features"]:
        """Applies it."""
        shape = (KERNEL_SIZE, KERNEL_SIZE, maps.shape[-1], self.features)
        kernel = self.param("kernel", head_initializer(1.0), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        batch = maps.reshape(-1, *maps.shape[-3:])
        return convolve(batch, kernel).reshape(*maps.shape[:-1], self.features) + bias


def convolve(
    maps: Float[Array, "batch h w inputs"], kernel: Float[Array, "3 3 inputs outputs"]
) -> Float[Array, "batch h w outputs"]:
    """Correlates maps, zero-padded, with a kernel.

    It has a gradient rule of its own, which rules out forward-mode differentiation.
    """
    return _convolve(maps, kernel, current_precision())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(maps: Array, kernel: Array, precision: str | None) -> Array:
    return _forward(maps, kernel, precision)[0]


def _forward(
    maps: Array, kernel: Array, precision: str | None
) -> tuple[Array, tuple[Array, Array]]:
    maps, kernel = rounded(maps, precision), rounded(kernel, precision)
    return _multiply(maps, kernel, precision), (maps, kernel)


def _multiply(maps: Array, kernel: Array, precision: str | None) -> Array:
    if jax.default_backend() == "cpu":
        return _correlate(maps, kernel, precision)
    # On GPUs the layers are batched, and their products stay one launch.
    total = contract(_neighbors(maps), kernel.reshape(-1, kernel.shape[-1]), 1, precision)
    return total.reshape(*maps.shape[:-1], kernel.shape[-1])


def _backward(
    precision: str | None, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    maps, kernel = residuals
    cotangent = rounded(cotangent, precision)
    # The cotangent's convolution with the kernel turned around, its channels swapped.
    by_maps = _multiply(cotangent, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), precision)
    return by_maps, _by_kernel(maps, cotangent, precision)


def _by_kernel(maps: Array, cotangent: Array, precision: str | None) -> Array:
    """The gradient of the kernel, [3, 3, inputs, outputs]."""
    if jax.default_backend() == "cpu":
        # A convolution whose batch axis holds the channels. The barrier keeps XLA from undoing the
        # transpositions; its own gradient of a kernel takes many times as long.
        channels, images = jax.lax.optimization_barrier(
            (maps.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
        )
        return _correlate(channels, images, precision).transpose(1, 2, 0, 3)
    neighbors = _neighbors(maps)
    # The other way around the product would have the larger matrix transposed. The barrier keeps
    # XLA from turning it around.
    by_kernel = gradient_of_kernel(cotangent, neighbors, neighbors.shape[1:], precision)
    by_kernel = jax.lax.optimization_barrier(by_kernel).T
    return by_kernel.reshape(KERNEL_SIZE, KERNEL_SIZE, maps.shape[-1], cotangent.shape[-1])


def _correlate(maps: Array, kernel: Array, precision: str | None) -> Array:
    """XLA's convolution of maps [B, h, w, inputs] with a border of one zero, float32 or wider."""
    common = jnp.result_type(maps, kernel)
    return jax.lax.conv_general_dilated(
        maps.astype(common),
        kernel.astype(common),
        window_strides=(1, 1),
        padding=[(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
        preferred_element_type=jnp.result_type(common, jnp.float32),
    )


_convolve.defvjp(_forward, _backward)


def _neighbors(maps: Array) -> Array:
    """Each position's neighbors, row by row, [B * h * w, 9 * c] of maps [B, h, w, c]."""
    _, height, width, channels = maps.shape
    padded = jnp.pad(maps, [(0, 0), (1, 1), (1, 1), (0, 0)])
    shifted = [
        padded[:, i : i + height, j : j + width]
        for i, j in itertools.product(range(KERNEL_SIZE), repeat=2)
    ]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, KERNEL_SIZE**2 * channels)


class ResidualBlock(nn.Module):
    """x + f(x) with two layers, each after an ELU: a 3x3 and a 1x1 convolution on maps."""

    convolutional: bool  # whether x is a map [..., h, w, channels] or a vector [..., channels]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Keeps the shape."""
        size = x.shape[-1]
        first = Conv(size) if self.convolutional else Dense(size)
        second = Dense(size, kernel_init=head_initializer(0.1))
        hidden = elu(first(elu(x)))
        # XLA would copy maps to sum over several axes in the gradient of the kernel.
        return x + second(hidden.reshape(-1, size)).reshape(x.shape)


class ResNetFeatures(nn.Module):
    """An image, or a window of blocks, to the offset of a `ResNetNetwork`."""

    config: ModelConfig
    num_hidden_layers: int  # number of residual blocks

    @nn.compact
    def __call__(self, inputs: Array, event_ndims: int, condition: Array | None = None) -> Array:
        """Features [..., h, w, hidden_size] where codes are maps, else [..., hidden_size].

        inputs are images [..., height, width, c] or windows of blocks [..., j, h, w, c]; the
        condition is [..., C] or None.
        """
        size = self.config.hidden_size
        if not _codes_are_maps(self.config) and event_ndims != 3:
            hidden = plus_condition(Dense(size)(flatten(inputs, event_ndims)), condition)
            return self._blocks(hidden, convolutional=False)
        if event_ndims == 4:
            inputs = _window_to_channels(inputs)
        maps = Conv(size)(space_to_depth(inputs, self._grid(inputs)))
        maps = self._blocks(plus_condition(maps, condition, position_ndims=2), True)
        return maps if _codes_are_maps(self.config) else Dense(size)(flatten(elu(maps), 3))

    def _blocks(self, x: Array, convolutional: bool) -> Array:
        for _ in range(self.num_hidden_layers):
            x = ResidualBlock(convolutional)(x)
        return x

    def _grid(self, images: Array) -> tuple[int, ...]:
        """Height and width of the maps that images are processed at."""
        if _codes_are_maps(self.config):
            return self.config.latent_shape[:2]
        height, width = images.shape[-3:-1]
        for factor in (4, 2):
            # Below 4 x 4 positions a convolution sees nothing but the border.
            if not (height % factor or width % factor) and min(height, width) >= 4 * factor:
                return height // factor, width // factor
        return height, width


class ResNetRefinement(MLPRefinement):
    """`MLPRefinement` by a residual block, on maps where codes are maps."""

    def _refine(self, hidden: Array) -> Array:
        return ResidualBlock(_codes_are_maps(self.config))(hidden)


class ResNetNetwork(MLPNetwork):
    """`MLPNetwork` with `num_hidden_layers - 1` residual blocks after the sum with the offset."""

    def _position_ndims(self) -> int:
        return 2 if _codes_are_maps(self.config) else 0

    def _last_hidden(self, hidden: Array) -> Array:
        convolutional = _codes_are_maps(self.config)
        for _ in range(self.config.num_hidden_layers - 1):
            hidden = ResidualBlock(convolutional)(hidden)
        return elu(hidden)

    def _hidden(self, codes: Array, event_ndims: int, use_bias: bool) -> Array:
        size = self.config.hidden_size
        if _codes_are_maps(self.config):
            if event_ndims == 4:
                codes = _window_to_channels(codes)
            hidden = Conv(size)(codes)
        else:
            hidden = Dense(size)(flatten(codes, event_ndims))
        hidden = tanh(hidden) if self.bounded else elu(hidden)
        return Dense(size, use_bias=use_bias)(hidden)


def space_to_depth(images: Array, grid: tuple[int, ...]) -> Array:
    """Moves the pixels of each position of a grid (h, w) to its channels.

    Images [..., height, width, c] become [..., h, w, height/h * width/w * c].

    Raises:
        ConfigError: the grid does not divide the image.
    """
    *batch_shape, height, width, channels = images.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise ConfigError(
            f"config.model.latent_shape has codes on a {rows}x{columns} grid, which does not "
            f"divide {height}x{width} pixels; with network='resnet' choose another partition, or a "
            "vector such as (10,)"
        )
    cells = images.reshape(*batch_shape, rows, height // rows, columns, width // columns, channels)
    cells = jnp.moveaxis(cells, -4, -3)
    return flatten(cells, 3)


def _codes_are_maps(config: ModelConfig) -> bool:
    """Whether `latent_shape` is (h, w, c), which it may be if blocks have h x w pixels."""
    rows, columns, _ = create_partition(config).block_shape
    if len(config.latent_shape) == 1:
        return False
    if len(config.latent_shape) != 3 or config.latent_shape[:2] != (rows, columns):
        raise ConfigError(
            f"config.model.latent_shape={config.latent_shape} does not fit the blocks of x, which "
            f"have {rows}x{columns} pixels; with network='resnet' choose ({rows}, {columns}, "
            "channels), or a vector such as (10,)"
        )
    return True


def _window_to_channels(window: Float[Array, "*batch k h w c"]) -> Float[Array, "*batch h w kc"]:
    return flatten(jnp.moveaxis(window, -4, -2), 2)
