"""The Ladder VAE (Sønderby et al. 2016), one of the systems that the paper compares with."""

import itertools
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from sere_jax.arrays import Array, Images, Noise, PerImage, flatten, record
from sere_jax.data_layer import create_data_layer
from sere_jax.model import Inferred, WholeImageModel
from sere_jax.networks.activations import elu
from sere_jax.networks.products import Dense

MIN_VARIANCE = 1e-5


@record
class LadderInference(Inferred):
    """What the model infers of a batch x, with one sample of the codes; layer 1 generates x.

    Attributes:
        log_likelihood: [B], log p(x | z_1) in nats.
        kl: [B, L] in nats, in closed form.
        epsilon, z: of each layer [B, N_l], drawn from q; the same, as there is no bijector.
        prior_mean, prior_scale: of each layer [B, N_l], given z_{l+1}.
        posterior_mean, posterior_scale: of each layer [B, N_l].
    """

    log_likelihood: PerImage
    kl: Float[Array, "batch layers"]
    epsilon: tuple[Float[Array, "batch _"], ...]
    z: tuple[Float[Array, "batch _"], ...]
    prior_mean: tuple[Float[Array, "batch _"], ...]
    prior_scale: tuple[Float[Array, "batch _"], ...]
    posterior_mean: tuple[Float[Array, "batch _"], ...]
    posterior_scale: tuple[Float[Array, "batch _"], ...]


@record
class Evidence:
    """The likelihood-like term q̂ that the bottom-up pass finds for a layer."""

    mean: Float[Array, "*latents"]  # [..., N_l]
    variance: Float[Array, "*latents"]


class HiddenLayers(nn.Module):
    """Hidden layers, without the batch normalization of the original.

    With it the density of an image would depend on the other images of its batch. Layer
    normalization would take from codes their scale.
    """

    hidden_size: int  # their width
    num_hidden_layers: int  # how many

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """[..., features] to [..., hidden_size]."""
        for _ in range(self.num_hidden_layers):
            hidden = elu(Dense(self.hidden_size)(hidden))
        return hidden


class LadderVAE(WholeImageModel):
    """z_L -> ... -> z_1 -> x, whose posterior shares the top-down pass of its prior.

    p(z_L) = N(0, I), p(z_l | z_{l+1}) = N(μ_p, σ_p²); a deterministic bottom-up pass finds μ̂, σ̂² of
    each layer; and q(z_l | z_{l+1}, x) is their product (Eqs. 17 to 19):

        σ_q² = 1 / (σ̂⁻² + σ_p⁻²)    μ_q = (μ̂ σ̂⁻² + μ_p σ_p⁻²) σ_q²

    with q(z_L | x) = N(μ̂_L, σ̂_L²). Its factorization is that of the exact posterior, in which
    p(z_l | z_{l+1}, x) is proportional to p(z_l | z_{l+1}) p(x | z_l); approximate are the Gaussian
    form of this evidence p(x | z_l), and what the bottom-up pass says of it.

    The hidden layers of layer l have `hidden_size` N_l / N_1 units.
    """

    def setup(self) -> None:
        """Creates both passes and the data layer."""
        config = self.config
        sizes = config.latents_per_layer
        widths = [max(1, round(config.hidden_size * size / sizes[0])) for size in sizes]
        depth = config.num_hidden_layers
        self.bottom_up = [HiddenLayers(width, depth) for width in widths]
        self.evidence = [nn.Dense(2 * size) for size in sizes]
        self.top_down = [HiddenLayers(width, depth) for width in widths[:-1]]
        self.prior = [nn.Dense(2 * size) for size in sizes[:-1]]
        self.data_layer = create_data_layer(config, config.data_shape, is_whole_image=True)

    def __call__(self, x: Array, noise: Noise) -> LadderInference:
        """Infers the codes of x [B, *data_shape]."""
        z, priors, posteriors = self._top_down(noise, self.observe(x))
        kl = [q.kl_divergence(p).sum(-1) for q, p in zip(posteriors, priors, strict=True)]
        return LadderInference(
            log_likelihood=self.decode(z[0], x),
            kl=jnp.stack(kl, axis=-1),
            epsilon=z,
            z=z,
            prior_mean=tuple(
                jnp.broadcast_to(p.loc, code.shape) for p, code in zip(priors, z, strict=True)
            ),
            prior_scale=tuple(
                jnp.broadcast_to(p.scale, code.shape) for p, code in zip(priors, z, strict=True)
            ),
            posterior_mean=tuple(q.loc for q in posteriors),
            posterior_scale=tuple(q.scale for q in posteriors),
        )

    def observe(self, x: Array) -> tuple[Evidence, ...]:
        """The bottom-up pass over x [B, *data_shape]."""
        hidden = flatten(self.data_layer.to_network(x), 3)
        evidence = []
        for network, head in zip(self.bottom_up, self.evidence, strict=True):
            hidden = network(hidden)
            evidence.append(Evidence(*_mean_and_variance(head(hidden))))
        return tuple(evidence)

    def log_weights(
        self,
        x: Array,
        observed: tuple[Evidence, ...],
        noise: Float[Array, "1 samples batch latents"],
    ) -> tuple[Float[Array, "samples batch"], Float[Array, "samples batch"]]:
        """See the base class."""
        z, priors, posteriors = self._top_down(noise, observed)
        return self.decode(z[0], x), _log_ratio(z, priors, posteriors)

    def generate(self, noise: Noise, keys: Array) -> tuple[Images, Images]:
        """Images and their expectations."""
        z, _, _ = self._top_down(noise, None)
        return self.emit(z[0], keys)

    def prior_noise(self, x: Array, noise: Noise) -> Noise:
        """(z - μ_p) / σ_p of all layers; see the base class."""
        z, priors, _ = self._top_down(noise, self.observe(x))
        noises = [(code - p.loc) / p.scale for code, p in zip(z, priors, strict=True)]
        return jnp.concatenate(noises, axis=-1)[None]

    def regenerate(
        self, z: tuple[Array, ...], keys: Array, residual: bool
    ) -> tuple[Images, Images]:
        """See the base class; z_1 alone generates x."""
        return super().regenerate(z[0], keys, residual)

    @property
    def code_shape(self) -> tuple[tuple[int], ...]:
        """(N_l,) of each layer."""
        return tuple((size,) for size in self.config.latents_per_layer)

    def generate_rest(
        self, z: tuple[Array, ...], num_given: int, noise: Noise, keys: Array
    ) -> tuple[Images, Images]:
        """See the base class; the first layers are L and those below it."""
        num_drawn = len(z) - num_given
        z, _, _ = self._top_down(noise, None, (*[None] * num_drawn, *z[num_drawn:]))
        return self.emit(z[0], keys)

    def read_by_data_layer(self, coordinates: tuple[Array, ...]) -> Array:
        """z_1."""
        return coordinates[0]

    def log_code_ratio(
        self, observed: tuple[Evidence, ...], coordinates: tuple[Array, ...]
    ) -> PerImage:
        """See the base class."""
        return _log_ratio(*self._top_down(None, observed, coordinates))

    def _top_down(
        self,
        noise: Array | None,
        evidence: tuple[Evidence, ...] | None,
        given: tuple[Array | None, ...] | None = None,
    ) -> tuple[tuple[Array, ...], tuple[distrax.Normal, ...], tuple[distrax.Normal, ...]]:
        """Codes, priors and posteriors of all layers; without evidence posteriors are priors.

        Codes that are given need no noise.
        """
        borders = list(itertools.accumulate(self.config.latents_per_layer))[:-1]
        num_layers = self.config.num_layers
        noises: Any = given
        if noise is not None:
            noises = jnp.split(jnp.squeeze(noise, 0), np.array(borders, int), axis=-1)
        z: list[Any] = list(given or [None] * num_layers)
        priors: list[Any] = [None] * num_layers
        posteriors: list[Any] = [None] * num_layers
        for layer in reversed(range(num_layers)):
            is_top = layer == num_layers - 1
            if is_top:
                mean, variance = jnp.zeros(()), jnp.ones(())
            else:
                hidden = self.top_down[layer](z[layer + 1])
                mean, variance = _mean_and_variance(self.prior[layer](hidden))
            priors[layer] = distrax.Normal(mean, jnp.sqrt(variance))
            if evidence is not None:
                found = evidence[layer]
                if is_top:
                    mean, variance = found.mean, found.variance
                else:
                    mean, variance = _product(mean, variance, found)
            posteriors[layer] = distrax.Normal(mean, jnp.sqrt(variance))
            if z[layer] is None:
                z[layer] = mean + jnp.sqrt(variance) * noises[layer]
        return tuple(z), tuple(priors), tuple(posteriors)


def _mean_and_variance(raw: Array) -> tuple[Array, Array]:
    mean, raw_variance = jnp.split(raw, 2, axis=-1)
    return mean, MIN_VARIANCE + jax.nn.softplus(raw_variance)


def _log_ratio(
    z: tuple[Array, ...], priors: tuple[distrax.Normal, ...], posteriors: tuple[distrax.Normal, ...]
) -> Array:
    """log p(z) - log q(z | x) in nats, [...]."""
    ratios = [
        jnp.sum(p.log_prob(code) - q.log_prob(code), axis=-1)
        for code, p, q in zip(z, priors, posteriors, strict=True)
    ]
    return jnp.sum(jnp.stack(ratios), axis=0)


def _product(mean: Array, variance: Array, evidence: Evidence) -> tuple[Array, Array]:
    """Mean and variance of the normalized product of two normal densities."""
    total = variance + evidence.variance
    return (
        (mean * evidence.variance + evidence.mean * variance) / total,
        variance * evidence.variance / total,
    )
