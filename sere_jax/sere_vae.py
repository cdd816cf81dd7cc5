"""The Self-Reflective Variational Autoencoder (paper, section 3)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sere_jax.hierarchy import Hierarchy, Latents, Observed
from sere_jax.model import LatentVariableModel
from sere_jax.networks.masked import masked
from sere_jax.posterior import kl_divergence, log_density_ratio

Array = jax.Array


@struct.dataclass
class Inference:
    """What the model infers of a batch x, with one sample of the codes."""

    log_likelihood: Array  # [B], log p(x | z)
    kl: Array  # [B, L], closed form
    epsilon: Array  # [B, L, *latent_shape], drawn from q
    z: Array  # [B, L, *latent_shape], f_l(epsilon_l), 0 at codes that a layer does not have
    prior_mean: Array  # [B, L, *latent_shape], μ
    prior_scale: Array  # [B, L, *latent_shape], σ
    residual_mean: Array  # [B, L, *latent_shape], δμ
    residual_scale: Array  # [B, L, *latent_shape], δσ
    data_parameters: Any  # [B, L, h, w, parameters a pixel], γ; of flows, `FlowParameters`
    bijector: Any  # distrax bijectors f_l, layers first [L, B, ...], for jax.vmap over L

    @property
    def posterior_mean(self) -> Array:
        """Mean of q(ε_l | z_{l-1}, x), [B, L, *latent_shape]."""
        return self.prior_mean * self.residual_scale + self.residual_mean

    @property
    def posterior_scale(self) -> Array:
        """Standard deviation of q(ε_l | z_{l-1}, x), [B, L, *latent_shape]."""
        return self.prior_scale * self.residual_scale

    @property
    def elbo(self) -> Array:
        """log p(x | z) - KL, [B]."""
        return self.log_likelihood - jnp.sum(self.kl, axis=-1)


class SeReVAE(LatentVariableModel):
    """Generative and inference network with shared priors and bijectors.

    x_l ~ p(x_l | z_l, x_{l-1}): one version of the paper prints p(x_l | z_{l-1}, x_{l-1}) in its
    Eq. 3, while p(x_1 | z_1), its Figure 1 and its proof need z_l; with z_{l-1} the last code would
    generate nothing.

    Attributes:
        config: the checked configuration.
    """

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(L, *latent_shape)."""
        return (self.config.num_layers, *self.config.latent_shape)

    @property
    def generates_blocks(self) -> bool:
        """Each of its layers generates one."""
        return True

    @property
    def num_block_keys(self) -> int:
        """One for each of the L blocks."""
        return self.config.num_layers

    def setup(self):
        """Creates the hierarchy."""
        self.hierarchy = Hierarchy(self.config, name="hierarchy")

    def __call__(self, x: Array, noise: Array) -> Inference:
        """Infers the codes of x [B, *data_shape] with noise [B, L, *latent_shape]."""
        observed = self.hierarchy.observe(x)
        latents = self.hierarchy.infer(observed, jnp.moveaxis(noise, 1, 0))
        parameters, log_likelihood = self.hierarchy.decode(latents.z, observed, x)
        kl = self._sum_latents(kl_divergence(latents.prior, latents.residual))

        def batch_first(values):
            return jnp.moveaxis(values, 0, 1)

        return Inference(
            log_likelihood=jnp.sum(log_likelihood, axis=0),
            kl=batch_first(kl),
            epsilon=batch_first(latents.epsilon),
            z=batch_first(latents.z),
            prior_mean=batch_first(latents.prior.mean),
            prior_scale=batch_first(latents.prior.scale),
            residual_mean=batch_first(latents.residual.mean),
            residual_scale=batch_first(latents.residual.scale),
            data_parameters=jax.tree.map(batch_first, parameters),
            bijector=latents.bijector,
        )

    def observe(self, x: Array) -> Observed:
        """What all layers know of x, computed once for any number of samples."""
        return self.hierarchy.observe(x)

    def log_weights(self, x: Array, observed: Observed, noise: Array) -> tuple[Array, Array]:
        """Both parts of log p(x, z) - log q(z | x) for several samples an image.

        Args:
            x: [B, *data_shape].
            observed: `observe(x)`.
            noise: [S, B, L, *latent_shape], standard normal.

        Returns:
            log p(x | z) [S, B] and log p(ε) - log q(ε | x) [S, B].
        """
        latents: Latents = self.hierarchy.infer(observed, jnp.moveaxis(noise, 2, 0))
        _, log_likelihood = self.hierarchy.decode(latents.z, observed, x)
        ratio = log_density_ratio(latents.prior, latents.residual, jnp.moveaxis(noise, 2, 0))
        return jnp.sum(log_likelihood, axis=0), jnp.sum(self._sum_latents(ratio), axis=0)

    def generate(self, noise: Array, keys: Array) -> tuple[Array, Array]:
        """Images and their expectations from noise [B, L, *latent_shape] and keys [B, L]."""
        return self.hierarchy.generate(jnp.moveaxis(noise, 1, 0), jnp.moveaxis(keys, 1, 0))

    def prior_noise(self, inference: Inference) -> Array:
        """(ε - μ) / σ [B, L, *latent_shape], 0 at codes that a layer does not have.

        Where priors see previous blocks (`couple_data_to_prior`), μ and σ are those that the blocks
        of x give.
        """
        noise = (inference.epsilon - inference.prior_mean) / inference.prior_scale
        return masked(noise, self.hierarchy.code_mask)

    def regenerate(self, z: Array, keys: Array, residual: bool) -> tuple[Array, Array]:
        """Images and their expectations from codes z [B, L, *latent_shape] and keys [B, L]."""
        return self.hierarchy.regenerate(jnp.moveaxis(z, 1, 0), jnp.moveaxis(keys, 1, 0), residual)

    def _sum_latents(self, values):
        return jnp.sum(values, axis=tuple(range(-len(self.config.latent_shape), 0)))
