"""What a model must be able to do; the public functions of `sere_jax.functions` need no more."""

from typing import Any

import distrax
import jax
import jax.numpy as jnp
import yaml  # type: ignore[import-untyped]
from flax import linen as nn
from flax import struct

from sere_jax.config import ModelConfig

Array = jax.Array

# Flax's `tabulate` writes what modules return as YAML, which knows no bijectors.
yaml.SafeDumper.add_multi_representer(
    distrax.Bijector, lambda dumper, bijector: dumper.represent_str(type(bijector).__name__)
)


class LatentVariableModel(nn.Module):
    """A pair of p(x, z) and q(z | x).

    Attributes:
        config: the checked configuration.
    """

    config: ModelConfig

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise that one sample of all codes of one image takes."""
        raise NotImplementedError

    @property
    def generates_blocks(self) -> bool:
        """Whether images are generated block by block, as `config.partition` cuts them."""
        return False

    @property
    def num_block_keys(self) -> int:
        """How many keys the data layers take to sample one image."""
        return 1

    def __call__(self, x: Array, noise: Array) -> Any:
        """Infers the codes of x [B, *data_shape] with noise [B, *noise_shape].

        Returns:
            A record with log_likelihood [B], log p(x | z); kl [B, layers], in closed form or
            estimated from this one sample; and the codes, z.
        """
        raise NotImplementedError

    def elbo_terms(self, x: Array, noise: Array) -> tuple[Array, Array]:
        """log p(x | z) [B] and KL [B, layers] for noise [B, *noise_shape]."""
        inference = self(x, noise)
        return inference.log_likelihood, inference.kl

    def observe(self, x: Array) -> Any:
        """What q knows of x, computed once for any number of samples."""
        raise NotImplementedError

    def log_weights(self, x: Array, observed: Any, noise: Array) -> tuple[Array, Array]:
        """Both parts of log p(x, z) - log q(z | x) for several samples an image.

        Args:
            x: [B, *data_shape].
            observed: `observe(x)`.
            noise: [S, B, *noise_shape], standard normal.

        Returns:
            log p(x | z) [S, B] and log p(z) - log q(z | x) [S, B].
        """
        raise NotImplementedError

    def generate(self, noise: Array, keys: Array) -> tuple[Array, Array]:
        """Images and their expectations from noise [B, *noise_shape] and keys [B, block keys]."""
        raise NotImplementedError

    def prior_noise(self, inference: Any) -> Array:
        """Noise from which `generate` makes the codes that were inferred.

        Args:
            inference: what `__call__` returned.

        Returns:
            [B, *noise_shape], standard normal where the codes are those of the prior.
        """
        raise NotImplementedError

    def regenerate(self, z: Any, keys: Array, residual: bool) -> tuple[Array, Array]:
        """Images and their expectations from the codes that `__call__` returns, and keys."""
        raise NotImplementedError


@struct.dataclass
class SampledInference:
    """What a model without a closed form of the KL infers of a batch x, with one sample."""

    log_likelihood: Array  # [B], log p(x | z)
    kl: Array  # [B, 1], estimated from this one sample
    epsilon: Array  # [B, N], what z is a function of
    z: Array  # [B, N], drawn from q

    @property
    def elbo(self) -> Array:
        """log p(x | z) - KL, [B]."""
        return self.log_likelihood - jnp.sum(self.kl, axis=-1)


class WholeImageModel(LatentVariableModel):
    """A model whose one data layer generates the whole image from one code."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(1, ΣN_l), N_l codes of layer l."""
        return (1, sum(self.config.codes_per_layer))

    def decode(self, z: Array, x: Array) -> Array:
        """log p(x | z) [..., B] for z [..., B, latents] and x [B, *data_shape]."""
        return self.data_layer.block_log_prob(self.data_layer(z, None), x, None)

    def emit(self, z: Array, keys: Array) -> tuple[Array, Array]:
        """Images and their expectations from z [B, latents] and keys [B, 1]."""
        parameters = self.data_layer(z, None)
        images = self.data_layer.sample_blocks(parameters, jnp.squeeze(keys, 1), None)
        return images, self.data_layer.expected_blocks(parameters, images)
