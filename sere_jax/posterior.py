"""Residual Gaussian posterior layers q(ε_l | z_{l-1}, x) and their KL (paper, section 3.4.2)."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from sere_jax.arrays import Array, record
from sere_jax.config import ModelConfig
from sere_jax.networks.family import create_network
from sere_jax.prior import Prior


@record
class Residual:
    """What the posterior changes of the prior: q = N(μ δσ + δμ, (σ δσ)²), 0 < δσ <= 1."""

    mean: Float[Array, "*latents"]  # δμ
    log_scale: Float[Array, "*latents"]  # log δσ <= 0

    @property
    def scale(self) -> Array:
        """δσ [..., *latent_shape]."""
        return jnp.exp(self.log_scale)


class PosteriorLayer(nn.Module):
    """Features of x (and the window of codes) to the residual of one layer.

    It starts near δμ = 0, δσ = `residual_scale_start`, whatever x is.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, window: Array | None, offset: Array | None) -> Residual:
        """window (see `sere_jax.bijector`) or None, offset [..., hidden_size] of x."""
        shape = self.config.latent_shape
        if not self.config.has_latents:
            return Residual(mean=jnp.zeros(shape), log_scale=jnp.zeros(shape))
        network = create_network(
            self.config, (*shape[:-1], 2 * shape[-1]), head_scale=0.1, name="network"
        )
        mean, raw_scale = jnp.split(network(window, 1 + len(shape), offset), 2, axis=-1)
        start = self.config.residual_scale_start
        start_logit = math.log(start) - math.log1p(-start)
        return Residual(mean=mean, log_scale=jax.nn.log_sigmoid(raw_scale + start_logit))


def posterior_sample(prior: Prior, residual: Residual, noise: Array) -> Array:
    """ε = μ δσ + δμ + σ δσ noise, [..., *latent_shape], for standard normal noise."""
    return residual.mean + residual.scale * (prior.mean + prior.scale * noise)


def posterior_noise(prior: Prior, residual: Residual, epsilon: Array) -> Array:
    """The noise [..., *latent_shape] that `posterior_sample` makes ε of."""
    return ((epsilon - residual.mean) / residual.scale - prior.mean) / prior.scale


def kl_divergence(prior: Prior, residual: Residual) -> Array:
    """KL(q || p) in nats of each latent dimension, [..., *latent_shape] (paper, Eq. 10).

    (δμ - (1 - δσ) μ)² / (2 σ²) + δσ²/2 - log δσ - 1/2. By Proposition 1 it is also the KL
    between the two distributions of z_l = f_l(ε_l), whatever the bijector f_l.
    """
    narrowing = jnp.expm1(residual.log_scale)  # δσ - 1
    shift = residual.mean + narrowing * prior.mean
    return (
        0.5 * jnp.square(shift / prior.scale)
        + 0.5 * narrowing * (2.0 + narrowing)  # δσ² - 1; XLA may confuse a second expm1
        - residual.log_scale
    )


def log_density_ratio(prior: Prior, residual: Residual, noise: Array) -> Array:
    """log p(ε) - log q(ε) in nats of each dimension at ε = `posterior_sample(..., noise)`.

    The normalizing constants cancel exactly, so that no precision is lost where q is narrow.
    """
    standardized = _standardized_sample(prior, residual, noise)
    return 0.5 * (jnp.square(noise) - jnp.square(standardized)) + residual.log_scale


def log_density_ratio_with_splines(prior: Prior, residual: Residual, noise: Array) -> Array:
    """log p(ε) - log q(ε) in nats of a layer, [...], at ε = `posterior_sample(..., noise)`.

    p is the law of μ + σ S(η); minus this is the estimate of the KL, which has no closed form.
    """
    assert prior.splines is not None
    standardized = _standardized_sample(prior, residual, noise)
    noise_of_prior, log_det = prior.splines.inverse_and_log_det(standardized)
    ratio = 0.5 * (jnp.square(noise) - jnp.square(noise_of_prior)) + residual.log_scale
    event = tuple(range(-prior.splines.event_ndims_in, 0))
    return jnp.sum(ratio, axis=event) + log_det


def _standardized_sample(prior: Prior, residual: Residual, noise: Array) -> Array:
    """(ε - μ) / σ at ε = `posterior_sample(..., noise)`, [..., *latent_shape]."""
    shift = residual.mean + jnp.expm1(residual.log_scale) * prior.mean
    return shift / prior.scale + residual.scale * noise
