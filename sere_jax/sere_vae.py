"""The Self-Reflective Variational Autoencoder (paper, section 3)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from sere_jax.arrays import Array, Images, Noise, PerImage, masked, record
from sere_jax.hierarchy import Hierarchy
from sere_jax.layer import GivenCode, Latents, Observed
from sere_jax.model import Inferred, LatentVariableModel
from sere_jax.posterior import (
    kl_divergence,
    log_density_ratio,
    log_density_ratio_with_splines,
    posterior_noise,
)
from sere_jax.prior import Prior
from sere_jax.redraw import Redraw


@record
class Inference(Inferred):
    """What the model infers of a batch x, with one sample of the codes.

    Attributes:
        log_likelihood: [B], log p(x | z) in nats.
        kl: [B, L] in nats, in closed form; with `prior="spline"` estimated from this sample.
        epsilon: [B, L, *latent_shape], ε_l drawn from q.
        z: [B, L, *latent_shape], f_l(ε_l); 0 at codes that a layer does not have.
        prior_mean, prior_scale: [B, L, *latent_shape], μ and σ.
        residual_mean, residual_scale: [B, L, *latent_shape], δμ and δσ.
        data_parameters: γ, [B, L, h, w, parameters of a pixel]; of flows `FlowParameters`.
        bijector: distrax bijectors f_l, layers first, [L, B, ...], for `jax.vmap` over L.
    """

    log_likelihood: PerImage
    kl: Float[Array, "batch layers"]
    epsilon: Float[Array, "batch layers *latents"]
    z: Float[Array, "batch layers *latents"]
    prior_mean: Float[Array, "batch layers *latents"]
    prior_scale: Float[Array, "batch layers *latents"]
    residual_mean: Float[Array, "batch layers *latents"]
    residual_scale: Float[Array, "batch layers *latents"]
    data_parameters: Any
    bijector: Any

    @property
    def posterior_mean(self) -> Float[Array, "batch layers *latents"]:
        """Mean of q(ε_l | z_{l-1}, x)."""
        return self.prior_mean * self.residual_scale + self.residual_mean

    @property
    def posterior_scale(self) -> Float[Array, "batch layers *latents"]:
        """Standard deviation of q(ε_l | z_{l-1}, x)."""
        return self.prior_scale * self.residual_scale


class SeReVAE(LatentVariableModel):
    """Generative and inference network with shared priors and bijectors.

    x_l ~ p(x_l | z_l, x_{l-1}): one version of the paper prints p(x_l | z_{l-1}, x_{l-1}) in its
    Eq. 3, while p(x_1 | z_1), its Figure 1 and its proof need z_l; with z_{l-1} the last code would
    generate nothing.
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

    def setup(self) -> None:
        """Creates the hierarchy."""
        self.hierarchy = Hierarchy(self.config, name="hierarchy")

    def __call__(self, x: Array, noise: Noise, condition: Array | None = None) -> Inference:
        """Infers the codes of x [B, *data_shape]; the condition is [B, C], or None without one."""
        observed = self.hierarchy.observe(x, condition)
        latents = self.hierarchy.infer(observed, noise)
        parameters, log_likelihood = self.hierarchy.decode(latents.codes, observed)
        layers_first = {
            "kl": self._kl(latents, noise),
            "epsilon": latents.epsilon,
            "z": latents.z,
            "prior_mean": latents.prior.mean,
            "prior_scale": latents.prior.scale,
            "residual_mean": latents.residual.mean,
            "residual_scale": latents.residual.scale,
            "data_parameters": parameters,
        }
        batch_first = jax.tree.map(lambda values: jnp.moveaxis(values, 0, 1), layers_first)
        log_likelihood = jnp.sum(log_likelihood, axis=0)
        return Inference(log_likelihood, bijector=latents.bijector, **batch_first)

    def observe(self, x: Array, condition: Array | None = None) -> Observed:
        """What all layers know of x, computed once for any number of samples."""
        return self.hierarchy.observe(x, condition)

    def codes(self, x: Array, noise: Noise, **given: Any) -> Array:
        """The codes of x, [L, B, *latent_shape]."""
        return self.hierarchy.infer(self.observe(x, **given), noise).z

    def log_weights(
        self, x: Array, observed: Observed, noise: Float[Array, "layers samples batch *latents"]
    ) -> tuple[Float[Array, "*#samples batch"], Float[Array, "*#samples batch"]]:
        """See the base class; x and the condition are in `observed`."""
        del x
        latents = self.hierarchy.infer(observed, noise)
        _, log_likelihood = self.hierarchy.decode(latents.codes, observed)
        ratio = self._log_density_ratio(latents, noise)
        return jnp.sum(log_likelihood, axis=0), jnp.sum(ratio, axis=0)

    def generate(
        self, noise: Noise, keys: Key[Array, "layers batch"], condition: Array | None = None
    ) -> tuple[Images, Images]:
        """Images and their expectations."""
        return self.hierarchy.generate(noise, keys, condition)

    def prior_noise(self, x: Array, noise: Noise, condition: Array | None = None) -> Noise:
        """S⁻¹((ε - μ) / σ), 0 at codes that a layer does not have; see the base class.

        Where priors see previous blocks (`couple_data_to_prior`), μ, σ and S are those that the
        blocks of x give.
        """
        latents = self.hierarchy.infer(self.observe(x, condition), noise)
        noise = jax.vmap(Prior.noise)(latents.prior, latents.epsilon)
        return self._masked(noise)

    def regenerate(
        self,
        z: Float[Array, "layers batch *latents"],
        keys: Key[Array, "layers batch"],
        residual: bool,
        condition: Array | None = None,
    ) -> tuple[Images, Images]:
        """Images and their expectations from codes."""
        return self.hierarchy.regenerate(z, keys, residual, condition)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(L, *latent_shape)."""
        return self.noise_shape

    def arranged(self, z: Float[Array, "batch layers *latents"]) -> Array:
        """Layers first, 0 at codes that a layer does not have."""
        return self._masked(jnp.moveaxis(z, 1, 0))

    def generate_rest(
        self,
        z: Float[Array, "layers batch *latents"],
        num_given: int,
        noise: Noise,
        keys: Key[Array, "layers batch"],
        condition: Array | None = None,
    ) -> tuple[Images, Images]:
        """See the base class; the first layers are 1 to `num_given`."""
        given = GivenCode(z, jnp.arange(len(z)) < num_given)
        return self.hierarchy.generate(noise, keys, condition, given)

    def coordinates(self, x: Array, noise: Noise, **given: Any) -> Array:
        """ε, which makes z whatever x is."""
        epsilon = self.hierarchy.infer(self.observe(x, **given), noise).epsilon
        return jnp.moveaxis(epsilon, 0, 1)

    def log_weight(
        self,
        x: Array,
        coordinates: Float[Array, "batch layers *latents"],
        condition: Array | None = None,
    ) -> PerImage:
        """See the base class."""
        observed = self.observe(x, condition)
        latents = self.hierarchy.follow(observed, jnp.moveaxis(coordinates, 1, 0))
        _, log_likelihood = self.hierarchy.decode(latents.codes, observed)
        noise = posterior_noise(latents.prior, latents.residual, latents.epsilon)
        return jnp.sum(log_likelihood + self._log_density_ratio(latents, noise), axis=0)

    def redraw(
        self,
        x: Array,
        coordinates: Float[Array, "batch layers *latents"],
        missing: Float[Array, "height width channels"],
        keys: Key[Array, "layers batch"],
        condition: Array | None = None,
    ) -> tuple[Images, PerImage, Redraw]:
        """See the base class; priors that see the previous blocks make log p(z) depend on x."""
        observed = self.observe(x, condition)
        latents = self.hierarchy.follow(observed, jnp.moveaxis(coordinates, 1, 0))
        drawn, log_prob = self.hierarchy.redraw(latents.codes, observed, missing, keys)
        return drawn, self._log_prior(latents), log_prob

    def _log_prior(self, latents: Latents) -> PerImage:
        log_prior = jax.vmap(Prior.log_prob)(latents.prior, latents.epsilon)
        if latents.prior.splines is None:
            log_prior = self._sum_latents(self._masked(log_prior))
        return jnp.sum(log_prior, axis=0)

    def _kl(self, latents: Latents, noise: Array) -> Array:
        if latents.prior.splines is not None:
            return -self._log_density_ratio(latents, noise)
        return self._sum_latents(kl_divergence(latents.prior, latents.residual))

    def _log_density_ratio(self, latents: Latents, noise: Array) -> Array:
        """log p(ε) - log q(ε) of each layer, [L, ..., B]."""
        prior, residual = latents.prior, latents.residual
        if prior.splines is None:
            return self._sum_latents(log_density_ratio(prior, residual, noise))
        return jax.vmap(log_density_ratio_with_splines)(prior, residual, noise)

    def _masked(self, values: Array) -> Array:
        mask = self.hierarchy.code_mask
        return masked(values, None if mask is None else mask[:, None])

    def _sum_latents(self, values: Array) -> Array:
        return jnp.sum(values, axis=tuple(range(-len(self.config.latent_shape), 0)))
