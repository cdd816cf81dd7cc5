"""Data layers p(x_l | z_l, x_{l-1}) with the residual parametrization (paper, section 3.4.3).

γ_l = γ¹(z_l) + δγ(x_{l-1}, z_l) are the parameters of the block's distribution. What depends on
the previous blocks alone is computed by `observe`, once an image; the rest by `__call__`. To add a
data layer, derive from `DataLayer` and enter it in `DATA_LAYERS`.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from sere_jax.config import ModelConfig, choose
from sere_jax.network import create_features, create_network

Array = jax.Array


class DataLayer(nn.Module):
    """Networks of a data layer; a subclass says what distribution their outputs parametrize.

    Attributes:
        config: the model's configuration.
        block_shape: (h, w, channels) of a block.
        parameters_per_value: how many parameters γ the distribution has per value of the block.
    """

    config: ModelConfig
    block_shape: tuple[int, int, int]
    parameters_per_value: ClassVar[int] = 1

    def setup(self):
        """Creates γ¹ and, where the layer sees previous blocks, δγ."""
        height, width, channels = self.block_shape
        shape = (height, width, channels * self.parameters_per_value)
        self.base = create_network(self.config, shape, bounded=False)
        if self.config.couple_data:
            self.observed = create_features(
                self.config, num_hidden_layers=self.config.num_hidden_layers - 1
            )
            self.residual = create_network(self.config, shape, bounded=False)

    def observe(self, previous: Array) -> Array | None:
        """Offset of δγ from the previous blocks [..., j, h, w, channels]; None if uncoupled."""
        if not self.config.couple_data:
            return None
        return self.observed(self.to_network(previous), 4)

    def __call__(self, z: Array, offset: Array | None) -> Array:
        """γ [..., h, w, channels * parameters_per_value] from z [..., *latent_shape]."""
        event_ndims = len(self.config.latent_shape)
        parameters = self.base(z, event_ndims, None)
        if self.config.couple_data:
            parameters = parameters + self.residual(z, event_ndims, offset)
        return parameters

    @staticmethod
    def to_network(x: Array) -> Array:
        """x in data space to the float32 values that networks read."""
        return x.astype(jnp.float32)

    @staticmethod
    def log_prob(parameters: Array, block: Array) -> Array:
        """log p(x_l | γ) in nats of each pixel, [..., h, w, 1 or channels]."""
        raise NotImplementedError

    @staticmethod
    def sample(parameters: Array, key: Array) -> Array:
        """A block [..., h, w, channels] in data space."""
        raise NotImplementedError

    @staticmethod
    def mean(parameters: Array) -> Array:
        """Expected block [..., h, w, channels], float32, in the units of the data space."""
        raise NotImplementedError


class BernoulliDataLayer(DataLayer):
    """Binary pixels; γ are logits."""

    @staticmethod
    def log_prob(parameters: Array, block: Array) -> Array:
        """x γ - log(1 + exp γ) in nats of each pixel, for x in {0, 1}."""
        return -jax.nn.softplus((1.0 - 2.0 * block) * parameters)

    @staticmethod
    def sample(parameters: Array, key: Array) -> Array:
        """A block of zeros and ones, float32."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(parameters)).astype(jnp.float32)

    @staticmethod
    def mean(parameters: Array) -> Array:
        """Probability that a pixel is 1."""
        return jax.nn.sigmoid(parameters)


DATA_LAYERS: dict[str, type[DataLayer]] = {
    "bernoulli": BernoulliDataLayer,
}


def create_data_layer(config: ModelConfig, block_shape: tuple[int, int, int]) -> DataLayer:
    """The data layer called `config.data_layer`."""
    return choose("data_layer", config.data_layer, DATA_LAYERS)(config, block_shape)
