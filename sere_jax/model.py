"""What a model must be able to do; the public functions of `sere_jax.functions` need no more."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import distrax
import jax
import jax.numpy as jnp
import yaml  # type: ignore[import-untyped]
from flax import linen as nn
from jaxtyping import Float, Key

from sere_jax.arrays import Array, Images, Limits, Noise, Params, PerImage, record
from sere_jax.config import ModelConfig
from sere_jax.redraw import Redraw, redraw_missing

# Flax's `tabulate` writes what modules return as YAML, which knows no bijectors.
yaml.SafeDumper.add_multi_representer(
    distrax.Bijector, lambda dumper, bijector: dumper.represent_str(type(bijector).__name__)
)


@runtime_checkable
class Inferred(Protocol):
    """What a model infers of a batch x, with one sample of the codes; densities are in nats."""

    log_likelihood: PerImage  # log p(x | z)
    kl: Float[Array, "batch layers"]  # in closed form, or estimated from this one sample
    epsilon: Any  # what z is a function of
    z: Any  # the codes, drawn from q

    @property
    def elbo(self) -> PerImage:
        """log p(x | z) - KL."""
        return self.log_likelihood - jnp.sum(self.kl, axis=-1)


class LatentVariableModel(nn.Module):
    """A pair of p(x, z) and q(z | x).

    Arrays of layers have the layers first, those that `__call__` returns the batch. Where
    `config.condition_size` is C > 0, all methods but `log_weights` and `arranged` are also given
    `condition`, [B, C].

    Attributes:
        config: the checked configuration.
    """

    code_limits: ClassVar[Limits] = None  # of the values of `Inferred.z`; None: all real numbers

    config: ModelConfig

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(layers, *event), of the standard normal noise of one sample of an image's codes."""
        raise NotImplementedError

    @property
    def generates_blocks(self) -> bool:
        """Whether images are generated block by block, as `config.partition` cuts them."""
        return False

    @property
    def num_block_keys(self) -> int:
        """How many keys the data layers take to sample one image."""
        return 1

    def __call__(self, x: Array, noise: Noise) -> Inferred:
        """Infers the codes of x [B, *data_shape]."""
        raise NotImplementedError

    def codes(self, x: Array, noise: Noise, **given: Any) -> Any:
        """The codes z alone that `__call__` infers, as `regenerate` takes them."""
        return self(x, noise, **given).z

    def elbo_terms(
        self, x: Array, noise: Noise, **given: Any
    ) -> tuple[PerImage, Float[Array, "batch layers"]]:
        """log p(x | z) and KL."""
        inferred = self(x, noise, **given)
        return inferred.log_likelihood, inferred.kl

    def observe(self, x: Array) -> Any:
        """What q knows of x, computed once for any number of samples."""
        raise NotImplementedError

    def log_weights(
        self, x: Array, observed: Any, noise: Float[Array, "parts samples batch *event"]
    ) -> tuple[Float[Array, "*#samples batch"], Float[Array, "*#samples batch"]]:
        """log p(x | z) and log p(z) - log q(z | x) for several samples an image.

        Args:
            x: [B, *data_shape].
            observed: `observe(x)`.
            noise: standard normal.

        Returns:
            Both in nats, [samples, B]; without codes log p(x) is [B].
        """
        raise NotImplementedError

    def generate(self, noise: Noise, keys: Key[Array, "blocks batch"]) -> tuple[Images, Images]:
        """Images and their expectations."""
        raise NotImplementedError

    def prior_noise(self, x: Array, noise: Noise) -> Noise:
        """Noise from which `generate` makes the codes that `__call__` infers.

        It is standard normal where the codes are those of the prior.
        """
        raise NotImplementedError

    def regenerate(
        self, z: Any, keys: Key[Array, "blocks batch"], residual: bool
    ) -> tuple[Images, Images]:
        """Images and their expectations from `codes`; see `sere_jax.reconstruct`."""
        raise NotImplementedError

    @property
    def code_shape(self) -> Any:
        """The shape of `Inferred.z` without the batch; of z with parts a tuple of their shapes."""
        return self.noise_shape[1:]

    @property
    def has_codes_of_layers(self) -> bool:
        """Whether z, if it is one array, has an axis of layers after the batch."""
        return len(self.code_shape) > len(self.config.latent_shape)

    def arranged(self, z: Any) -> Any:
        """`Inferred.z` as `codes` returns it."""
        return z

    def generate_rest(
        self, z: Any, num_given: int, noise: Noise, keys: Key[Array, "blocks batch"]
    ) -> tuple[Images, Images]:
        """`generate`, with the codes of the first layers that generate taken from `codes`.

        Systems of one layer need none: `num_given` is above 0 and below their number.
        """
        raise NotImplementedError

    def coordinates(self, x: Array, noise: Noise, **given: Any) -> Any:
        """Codes drawn from q(z | x), or what they are a function of that does not depend on x.

        `log_weight` and `redraw` take these; `sere_jax.complete` moves them.
        """
        return self(x, noise, **given).epsilon

    def log_weight(self, x: Array, coordinates: Any) -> PerImage:
        """log p(x, z) - log q(z | x) in nats."""
        raise NotImplementedError

    def redraw(
        self,
        x: Array,
        coordinates: Any,
        missing: Float[Array, "height width channels"],
        keys: Key[Array, "blocks batch"],
    ) -> tuple[Images, PerImage, Redraw]:
        """Images with missing pixels (1) drawn anew, each block given those before it in x.

        Returns:
            The images; log p(z) in nats given these blocks, up to what does not depend on x; and
            log-probabilities of the blocks [blocks, B].
        """
        raise NotImplementedError


def apply(
    model: LatentVariableModel,
    params: Params,
    *arguments: Any,
    method: str = "__call__",
    condition: Array | None = None,
    rngs: dict[str, Array] | None = None,
) -> Any:
    """A method of the model with these parameters; models without a condition do not take one."""
    options: dict[str, Any] = {} if condition is None else {"condition": condition}
    return model.apply({"params": params}, *arguments, method=method, rngs=rngs, **options)


@record
class SampledInference(Inferred):
    """What a model without a closed form of the KL infers of a batch x, with one sample."""

    log_likelihood: PerImage  # log p(x | z)
    kl: Float[Array, "batch 1"]  # estimated from this one sample
    epsilon: Float[Array, "batch latents"]  # what z is a function of
    z: Float[Array, "batch latents"]  # drawn from q


class WholeImageModel(LatentVariableModel):
    """A model whose one data layer generates the whole image from one code."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(1, ΣN_l), N_l latents of layer l."""
        return (1, sum(self.config.latents_per_layer))

    def decode(self, z: Float[Array, "*batch latents"], x: Array) -> Float[Array, "*batch"]:
        """log p(x | z) of x [B, *data_shape]; z may have axes of samples before B."""
        return self.data_layer.block_log_prob(self.data_layer(z), x, None)

    def emit(
        self, z: Float[Array, "batch latents"], keys: Key[Array, "1 batch"]
    ) -> tuple[Images, Images]:
        """Images and their expectations."""
        parameters = self.data_layer(z)
        images = self.data_layer.sample_blocks(parameters, jnp.squeeze(keys, 0), None)
        return images, self.data_layer.expected_blocks(parameters, images)

    def regenerate(
        self, z: Any, keys: Key[Array, "1 batch"], residual: bool
    ) -> tuple[Images, Images]:
        """See the base class; no layer is residual."""
        del residual
        return self.emit(z, keys)

    def read_by_data_layer(self, coordinates: Any) -> Float[Array, "batch latents"]:
        """What the data layer reads of the codes."""
        return coordinates

    def log_code_ratio(self, observed: Any, coordinates: Any) -> PerImage:
        """log p(z) - log q(z | x) in nats, for `observed` of x."""
        raise NotImplementedError

    def log_weight(self, x: Array, coordinates: Any) -> PerImage:
        """See the base class."""
        log_likelihood = self.decode(self.read_by_data_layer(coordinates), x)
        return log_likelihood + self.log_code_ratio(self.observe(x), coordinates)

    def redraw(
        self,
        x: Array,
        coordinates: Any,
        missing: Float[Array, "height width channels"],
        keys: Key[Array, "1 batch"],
    ) -> tuple[Images, PerImage, Redraw]:
        """See the base class; log p(z) does not depend on x."""
        parameters = self.data_layer(self.read_by_data_layer(coordinates))
        arguments = (x, missing[..., :1], jnp.squeeze(keys, 0), None)
        drawn, log_prob = redraw_missing(self.data_layer, parameters, *arguments)
        return drawn, jnp.zeros(len(x)), jax.tree.map(lambda part: part[None], log_prob)
