"""Data layers p(x_l | z_l, x_{l-1}) with the residual parametrization (paper, section 3.4.3).

γ_l = γ¹(z_l) + δγ(x_{l-1}, z_l) are the parameters of the block's distribution. What depends on
the previous blocks alone is computed by `observe`, once an image; the rest by `__call__`. To add a
data layer, derive from `DataLayer` and enter it in `DATA_LAYERS`.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from sere_jax.config import ModelConfig, choose
from sere_jax.network import create_features, create_network

Array = jax.Array

MIN_SCALE = 1e-3  # of Gaussian pixels whose scale is learned


class DataLayer(nn.Module):
    """Networks of a data layer; a subclass says what distribution their outputs parametrize.

    Attributes:
        config: the model's configuration.
        block_shape: (h, w, channels) of a block.
    """

    config: ModelConfig
    block_shape: tuple[int, int, int]

    @property
    def parameters_per_value(self) -> int:
        """How many parameters γ the distribution has per value of the block."""
        return 1

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

    def to_network(self, x: Array) -> Array:
        """x in data space to the float32 values that networks read."""
        return x.astype(jnp.float32)

    def log_prob(self, parameters: Array, block: Array) -> Array:
        """log p(x_l | γ) in nats of each pixel, [..., h, w, 1 or channels]."""
        raise NotImplementedError

    def sample(self, parameters: Array, key: Array) -> Array:
        """A block [..., h, w, channels] in data space."""
        raise NotImplementedError

    def mean(self, parameters: Array) -> Array:
        """Expected block [..., h, w, channels], float32, in the units of the data space."""
        raise NotImplementedError


class BernoulliDataLayer(DataLayer):
    """Binary pixels; γ are logits."""

    def log_prob(self, parameters: Array, block: Array) -> Array:
        """x γ - log(1 + exp γ) in nats of each pixel, for x in {0, 1}."""
        return -jax.nn.softplus((1.0 - 2.0 * block) * parameters)

    def sample(self, parameters: Array, key: Array) -> Array:
        """A block of zeros and ones, float32."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(parameters)).astype(jnp.float32)

    def mean(self, parameters: Array) -> Array:
        """Probability that a pixel is 1."""
        return jax.nn.sigmoid(parameters)


class GaussianDataLayer(DataLayer):
    """Real-valued pixels, independent given γ.

    γ are means and, unless `config.data_scale` is the standard deviation of all pixels, raw scales.
    """

    @property
    def parameters_per_value(self) -> int:
        """The mean, and the scale where it is learned."""
        return 1 if self.config.data_scale else 2

    def log_prob(self, parameters: Array, block: Array) -> Array:
        """log N(x; mean, scale²) in nats of each pixel, for real x."""
        mean, scale = self._mean_and_scale(parameters)
        standardized = (block - mean) / scale
        return -0.5 * (jnp.square(standardized) + math.log(2 * math.pi)) - jnp.log(scale)

    def sample(self, parameters: Array, key: Array) -> Array:
        """A block of real numbers, float32."""
        mean, scale = self._mean_and_scale(parameters)
        return mean + scale * jax.random.normal(key, mean.shape)

    def mean(self, parameters: Array) -> Array:
        """Expectation of each pixel."""
        return self._mean_and_scale(parameters)[0]

    def _mean_and_scale(self, parameters):
        if self.config.data_scale:
            return parameters, jnp.float32(self.config.data_scale)
        mean, raw_scale = jnp.split(parameters, 2, axis=-1)
        # Bounded below: on a pixel that never changes the likelihood would have no maximum.
        return mean, MIN_SCALE + jax.nn.softplus(raw_scale)


DATA_LAYERS: dict[str, type[DataLayer]] = {
    "bernoulli": BernoulliDataLayer,
    "gaussian": GaussianDataLayer,
}


def create_data_layer(config: ModelConfig, block_shape: tuple[int, int, int]) -> DataLayer:
    """The data layer called `config.data_layer`."""
    return choose("data_layer", config.data_layer, DATA_LAYERS)(config, block_shape)
