"""The VAE whose posterior is an inverse autoregressive flow (Kingma et al. 2016)."""

from typing import Any

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from sere_jax.arrays import Array, Images, Noise, PerImage, record
from sere_jax.data_layer import create_data_layer
from sere_jax.flows.autoregressive import MaskedAutoregressiveFlows
from sere_jax.model import SampledInference, WholeImageModel
from sere_jax.networks.activations import elu
from sere_jax.networks.mlp import MLPFeatures

MIN_SCALE = 1e-3


@record
class PosteriorInputs:
    """What q knows of a batch x."""

    mean: Float[Array, "batch latents"]  # μ
    scale: Float[Array, "batch latents"]  # σ
    features: Float[Array, "batch hidden"]  # which the flows read


class InverseAutoregressiveVAE(WholeImageModel):
    """x ~ p(x | z) from N standard normal latents, whose posterior is a flow.

    With ε ~ N(0, I) the codes are z = f_T(... f_1(μ(x) + σ(x) ε)), T = `num_flows`, where each f_t
    moves a dimension by those before it and by x, in alternating order (section 3):

        log q(z | x) = log N(ε; 0, I) - Σ log σ - Σ_t log|det f_t'|

    In the hierarchy the bijective layers are shared with the generative model and do not see x.
    With one layer it is therefore a VAE with a diagonal posterior of ε and a decoder that starts
    with the flow (`configs/mnist_iaf.py:iaf`); here the flow belongs to q alone.

    f_t is g z + (1 - g) m with gates g in (0, 1). Unlike in the original, an affine map with
    constants of each dimension comes before each.
    """

    def setup(self) -> None:
        """Creates the encoder, the flows and the data layer."""
        config = self.config
        (num_latents,) = config.latent_shape
        self.encoder = MLPFeatures(config, config.num_hidden_layers - 1)
        self.base = nn.Dense(2 * num_latents)
        widths = (config.hidden_size,) * (config.num_hidden_layers - 1)
        self.flows = MaskedAutoregressiveFlows(
            config.latent_shape, widths, config.num_flows, gated=True
        )
        self.data_layer = create_data_layer(config, config.data_shape, is_whole_image=True)

    def __call__(self, x: Array, noise: Noise) -> SampledInference:
        """Infers the codes of x [B, *data_shape]."""
        epsilon = jnp.squeeze(noise, 0)
        z, log_ratio = self._sample_posterior(self.observe(x), epsilon)
        return SampledInference(
            log_likelihood=self.decode(z, x), kl=-log_ratio[..., None], epsilon=epsilon, z=z
        )

    def observe(self, x: Array) -> PosteriorInputs:
        """What q knows of x [B, *data_shape]."""
        features = elu(self.encoder(self.data_layer.to_network(x), 3))
        mean, raw_scale = jnp.split(self.base(features), 2, axis=-1)
        return PosteriorInputs(mean, MIN_SCALE + jax.nn.softplus(raw_scale), features)

    def log_weights(
        self, x: Array, observed: PosteriorInputs, noise: Float[Array, "1 samples batch latents"]
    ) -> tuple[Float[Array, "samples batch"], Float[Array, "samples batch"]]:
        """See the base class."""
        z, log_ratio = self._sample_posterior(observed, jnp.squeeze(noise, 0))
        return self.decode(z, x), log_ratio

    def generate(self, noise: Noise, keys: Array) -> tuple[Images, Images]:
        """Images and their expectations."""
        return self.emit(jnp.squeeze(noise, 0), keys)

    def prior_noise(self, x: Array, noise: Noise) -> Noise:
        """The codes; see the base class."""
        return self.codes(x, noise)[None]

    def coordinates(self, x: Array, noise: Noise, **given: Any) -> Array:
        """z itself: ε alone says nothing without x."""
        return self.codes(x, noise, **given)

    def log_code_ratio(
        self, observed: PosteriorInputs, coordinates: Float[Array, "batch latents"]
    ) -> PerImage:
        """See the base class; the flows are undone one dimension after another."""
        base, log_det = self.flows(observed.features).forward_and_log_det(coordinates)
        epsilon = (base - observed.mean) / observed.scale
        return self._log_ratio(observed, epsilon, coordinates) - log_det

    def _sample_posterior(
        self, observed: PosteriorInputs, epsilon: Float[Array, "*batch latents"]
    ) -> tuple[Float[Array, "*batch latents"], Float[Array, "*batch"]]:
        """z and log p(z) - log q(z | x) for noise ε."""
        base = observed.mean + observed.scale * epsilon
        z, log_det = distrax.Inverse(self.flows(observed.features)).forward_and_log_det(base)
        return z, self._log_ratio(observed, epsilon, z) + log_det

    def _log_ratio(self, observed: PosteriorInputs, epsilon: Array, z: Array) -> Array:
        """log p(z) - log q(z | x), but for the flows, [...]."""
        log_scale = jnp.sum(jnp.log(observed.scale), axis=-1)
        squares = 0.5 * jnp.sum(jnp.square(epsilon) - jnp.square(z), axis=-1)
        return squares + log_scale
