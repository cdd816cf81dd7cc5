"""Prior layers p(ε_l | z_{l-1}) = N(μ_l, diag σ_l²) (paper, Eq. 2 and section 3.2)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from sere_jax.arrays import Array, record
from sere_jax.config import ModelConfig
from sere_jax.networks.family import create_network

SMALLEST_SCALE = 1e-18  # whose square is still a float32


@record
class Prior:
    """Parameters of the prior of one layer."""

    mean: Float[Array, "*latents"]  # μ
    scale: Float[Array, "*latents"]  # σ

    def sample(self, noise: Array) -> Array:
        """ε = μ + σ noise, for standard normal noise [..., *latent_shape]."""
        return self.mean + self.scale * noise


class PriorLayer(nn.Module):
    """Window of codes (and features of previous blocks, or a condition) to those of p(ε_l | ·).

    The scale lies between `sigma_min` and `sigma_max` and starts at 1, or at the middle of the two
    where 1 is not inside. Its upper bound costs nothing: the scale of ε is a gauge that
    the bijector can undo. `config.prior` may fix it to the standard normal distribution instead.
    """

    config: ModelConfig

    @property
    def is_learned(self) -> bool:
        """Whether there is a network that can see anything."""
        return self.config.prior != "standard_normal" and self.config.has_latents

    @nn.compact
    def __call__(
        self, window: Array | None, offset: Array | None, condition: Array | None = None
    ) -> Prior:
        """window [..., k, *latent_shape] or None, offset of the previous blocks or None.

        The condition is from `create_condition`, or None.
        """
        config = self.config
        shape = config.latent_shape
        if not self.is_learned:
            return Prior(mean=jnp.zeros(shape), scale=jnp.ones(shape))
        network = create_network(
            config, (*shape[:-1], 2 * shape[-1]), head_scale=0.1, name="network"
        )
        mean, raw_scale = jnp.split(network(window, 1 + len(shape), offset, condition), 2, axis=-1)
        return Prior(mean=mean, scale=self._bounded_scale(raw_scale))

    def _bounded_scale(self, raw_scale: Array) -> Array:
        low, high = self.config.sigma_min, self.config.sigma_max
        start = (1.0 - low) / (high - low) if low < 1.0 < high else 0.5
        start_logit = jnp.log(start) - jnp.log1p(-start)
        scale = low + (high - low) * jax.nn.sigmoid(raw_scale + start_logit)
        return scale if low else jnp.maximum(scale, SMALLEST_SCALE)
