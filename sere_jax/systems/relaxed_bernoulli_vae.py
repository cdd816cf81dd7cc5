"""The Relaxed Bernoulli VAE with an exactly factorized posterior (Webb et al. 2018)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.arrays import Array, Images, Limits, Noise, PerImage, flatten, record
from sere_jax.data_layer import create_data_layer
from sere_jax.model import SampledInference, WholeImageModel
from sere_jax.networks.activations import elu
from sere_jax.networks.masked import MADE, MaskedNetwork, spread_degrees
from sere_jax.networks.products import Dense


@record
class RelaxedBernoulliInference(SampledInference):
    """What the model infers of a batch x; z lies in (0, 1), and ε are its logits."""

    posterior_logits: Float[Array, "batch latents"]  # of each latent given those before it


class RelaxedBernoulliVAE(WholeImageModel):
    """x ~ p(x | z) from N latents in (0, 1) that are independent a priori.

    Codes are relaxed Bernoulli variables (binary concrete; Maddison et al. 2017, section 3.1):

        z = sigmoid(ε)    ε = (logit + logistic noise) / temperature

    with logit 0 in the prior. Given x no two of them are independent, so that the posterior has
    all of their dependencies, q(z | x) = Π q(z_d | z_1 .. z_{d-1}, x) (Webb et al. 2018, section
    4): its logits are those of a masked autoregressive network. Densities are those of ε, in
    nats; the KL of q and p has no closed form.
    """

    code_limits: ClassVar[Limits] = (0.0, 1.0)

    def setup(self) -> None:
        """Creates the encoder, the autoregressive network and the data layer."""
        config = self.config
        (num_latents,) = config.latent_shape
        widths = (config.hidden_size,) * config.num_hidden_layers
        self.encoder = [Dense(width) for width in widths]
        degrees = spread_degrees(num_latents, widths, conditional=True)
        self.posterior = MADE(degrees, num_parameters=1)
        self.data_layer = create_data_layer(config, config.data_shape, is_whole_image=True)

    def __call__(self, x: Array, noise: Noise) -> RelaxedBernoulliInference:
        """Infers the codes of x [B, *data_shape]."""
        epsilon, logits = self._sample_posterior(self.observe(x), jnp.squeeze(noise, 0))
        return RelaxedBernoulliInference(
            log_likelihood=self.decode(_centered(epsilon), x),
            kl=-self._log_ratio(epsilon, logits)[..., None],
            epsilon=epsilon,
            z=jax.nn.sigmoid(epsilon),
            posterior_logits=logits,
        )

    def observe(self, x: Array) -> Array:
        """Features [B, hidden_size] of x [B, *data_shape]."""
        hidden = flatten(self.data_layer.to_network(x), 3)
        for layer in self.encoder:
            hidden = elu(layer(hidden))
        return hidden

    def log_weights(
        self, x: Array, observed: Array, noise: Float[Array, "1 samples batch latents"]
    ) -> tuple[Float[Array, "samples batch"], Float[Array, "samples batch"]]:
        """See the base class."""
        epsilon, logits = self._sample_posterior(observed, jnp.squeeze(noise, 0))
        return self.decode(_centered(epsilon), x), self._log_ratio(epsilon, logits)

    def generate(self, noise: Noise, keys: Array) -> tuple[Images, Images]:
        """Images and their expectations."""
        epsilon = _logistic(jnp.squeeze(noise, 0)) / self.config.prior_temperature
        return self.emit(_centered(epsilon), keys)

    def prior_noise(self, x: Array, noise: Noise) -> Noise:
        """Standard logistic noise as a standard normal one; see the base class."""
        logistic = self.config.prior_temperature * self(x, noise).epsilon
        # By the smaller tail: near 1, float32 has few digits.
        size = -jax.scipy.special.ndtri(jax.nn.sigmoid(-jnp.abs(logistic)))
        return (jnp.sign(logistic) * size)[None]

    def regenerate(self, z: Array, keys: Array, residual: bool) -> tuple[Images, Images]:
        """See the base class."""
        return super().regenerate(2.0 * z - 1.0, keys, residual)

    def read_by_data_layer(self, coordinates: Array) -> Array:
        """See the base class; ε are the coordinates."""
        return _centered(coordinates)

    def log_code_ratio(self, observed: Array, coordinates: Array) -> PerImage:
        """See the base class."""
        network: MaskedNetwork = self.posterior(observed)
        logits = jnp.squeeze(network(_centered(coordinates)), -2)
        return self._log_ratio(coordinates, logits)

    def _sample_posterior(self, observed: Array, noise: Array) -> tuple[Array, Array]:
        """ε and its logits, [..., N], for standard normal noise [..., N]."""
        network: MaskedNetwork = self.posterior(observed)
        temperature = self.config.posterior_temperature

        def code(logistic: Array, logit: Array) -> Array:
            return _centered((logit[..., 0] + logistic) / temperature)

        logistic = _logistic(noise)
        # The network reads the codes; ε, of which they keep few digits near 0 and 1, is computed.
        logits = jnp.squeeze(network(network.solve(code, logistic)), -2)
        return (logits + logistic) / temperature, logits

    def _log_ratio(self, epsilon: Array, logits: Array) -> Array:
        """log p(ε) - log q(ε | x), [...]."""
        config = self.config
        prior = log_density(epsilon, jnp.zeros(()), config.prior_temperature)
        return jnp.sum(prior - log_density(epsilon, logits, config.posterior_temperature), axis=-1)


def log_density(epsilon: Array, logits: Array, temperature: float) -> Array:
    """Log-density in nats of ε = (logit + logistic noise) / temperature, elementwise."""
    noise = temperature * epsilon - logits
    return jnp.log(temperature) - noise - 2.0 * jax.nn.softplus(-noise)


def _logistic(noise: Array) -> Array:
    """Standard normal noise to standard logistic noise."""
    return jax.scipy.special.log_ndtr(noise) - jax.scipy.special.log_ndtr(-noise)


def _centered(epsilon: Array) -> Array:
    """2 z - 1: what the data layer reads."""
    return jnp.tanh(epsilon / 2.0)
