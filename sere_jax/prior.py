"""Prior layers p(ε_l | z_{l-1}) = N(μ_l, diag σ_l²) (paper, Eq. 2 and section 3.2), or warped.

With splines S the prior is the law of μ + σ S(η), η ~ N(0, I), and not Gaussian. By Proposition 1 a
bijector that the posterior shares cannot repair a mismatch between it and the prior; S can, as the
posterior does not have it.
"""

import dataclasses
import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from sere_jax.arrays import Array, Params, flatten, record
from sere_jax.config import ModelConfig
from sere_jax.flows.coupling import SplineCoupling
from sere_jax.networks.activations import tanh
from sere_jax.networks.family import create_network

SMALLEST_SCALE = 1e-18  # whose square is still a float32


@record
class Prior:
    """Parameters of the prior of one layer."""

    mean: Float[Array, "*latents"]  # μ
    scale: Float[Array, "*latents"]  # σ
    splines: distrax.Bijector | None = None  # S; None: the identity

    def sample(self, noise: Array) -> Array:
        """ε = μ + σ S(noise), for standard normal noise [..., *latent_shape]."""
        standardized = noise if self.splines is None else self.splines.forward(noise)
        return self.mean + self.scale * standardized

    def noise(self, epsilon: Array) -> Array:
        """The noise [..., *latent_shape] that `sample` makes ε of."""
        standardized = (epsilon - self.mean) / self.scale
        return standardized if self.splines is None else self.splines.inverse(standardized)

    def log_prob(self, epsilon: Array) -> Array:
        """log p(ε) in nats: of each dimension, [..., *latent_shape]; with splines of all, [...]."""
        noise, log_det = (epsilon - self.mean) / self.scale, jnp.zeros(())
        if self.splines is not None:
            noise, log_det = self.splines.inverse_and_log_det(noise)
        log_prob = -0.5 * (jnp.square(noise) + math.log(2 * math.pi)) - jnp.log(self.scale)
        if self.splines is None:
            return log_prob
        return jnp.sum(log_prob, axis=tuple(range(-self.splines.event_ndims_in, 0))) + log_det

    def broadcast_to(self, shape: tuple[int, ...]) -> "Prior":
        """With μ and σ of this shape."""
        mean, scale = (jnp.broadcast_to(array, shape) for array in (self.mean, self.scale))
        return dataclasses.replace(self, mean=mean, scale=scale)


class PriorLayer(nn.Module):
    """Window of codes (and features of previous blocks, or a condition) to p(ε_l | ·).

    Maps a window (see `sere_jax.bijector`) to μ and σ [..., *latent_shape].

    The scale lies between `sigma_min` and `sigma_max` and starts at 1, or at the middle of the two
    where 1 is not inside. With the rank-one affine bijector the upper bound costs nothing, as that
    can scale ε anew. `config.prior` may fix the whole prior to N(0, I) instead, or add splines,
    which start near the identity.
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
        """window, or None; offset of the previous blocks, or None.

        The condition is from `create_condition`, or None.
        """
        config = self.config
        shape = config.latent_shape
        if not self.is_learned:
            return Prior(mean=jnp.zeros(shape), scale=jnp.ones(shape))
        num_latents, has_splines = shape[-1], config.prior == "spline"
        size = 2 * num_latents + (config.hidden_size if has_splines else 0)
        network = create_network(
            config, (*shape[:-1], size), head_scale=0.1, is_generative=True, name="network"
        )
        parameters = network(window, 1 + len(shape), offset, condition)
        mean, raw_scale, hidden = jnp.split(parameters, [num_latents, 2 * num_latents], axis=-1)
        prior = Prior(mean=mean, scale=self._bounded_scale(raw_scale))
        if not has_splines:
            return prior
        flow = SplineCoupling(shape, config.hidden_size, name="splines")
        # Densities take its forward direction, the faster one; samples the other.
        splines = distrax.Inverse(flow(flatten(tanh(hidden), len(shape))))
        return Prior(prior.mean, prior.scale, splines)

    def _bounded_scale(self, raw_scale: Array) -> Array:
        low, high = self.config.sigma_min, self.config.sigma_max
        is_inside = low < 1.0 < np.float32(high)
        start = (1.0 - low) / (high - low) if is_inside else 0.5
        start_logit = jnp.log(start) - jnp.log1p(-start)
        scale = low + (high - low) * jax.nn.sigmoid(raw_scale + start_logit)
        return scale if low else jnp.maximum(scale, SMALLEST_SCALE)


def started_from_gaussian(params: Params, of_gaussian: Params, hidden_size: int) -> Params:
    """Parameters of a model with spline priors that start from those of Gaussian priors.

    The splines stay as they are, near the identity at the start; the model is then near the other.

    Args:
        params: of the model with `prior="spline"`, as `sere_jax.init` returns them.
        of_gaussian: of the same model with `prior="gaussian"`.
        hidden_size: of both models' configurations.
    """
    leaves = flatten_dict(params)
    for path, leaf in flatten_dict(of_gaussian).items():
        started = leaves[path]
        if started.shape != leaf.shape:
            num_added = started.shape[-1] - leaf.shape[-1]
            # A position's outputs are those for μ and σ, then those that its splines depend on.
            positions = (num_added // hidden_size, -1)
            old, new = (a.reshape(*a.shape[:-1], *positions) for a in (leaf, started))
            joined = np.concatenate([old, new[..., old.shape[-1] :]], axis=-1)
            leaf = joined.reshape(started.shape)
        leaves[path] = leaf
    return unflatten_dict(leaves)
