"""Data layers of independent pixels, and what all data layers share (paper, section 3.4.3).

γ_l = γ¹(z_l) + δγ(x_{l-1}, z_l) are the parameters of the block's distribution. What depends on
the previous blocks alone is computed by `observe`, once an image; the rest by `__call__`.
"""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Shaped

from sere_jax import data_space, logistics
from sere_jax.arrays import Array
from sere_jax.config import ModelConfig
from sere_jax.data_space import DataSpace
from sere_jax.networks.family import create_condition, create_features, create_network, with_maps
from sere_jax.networks.products import Dense

MIN_SCALE = 1e-3  # of Gaussian pixels whose scale is learned
MAX_LOG_SCALE = 7.0  # of logistics, in units of half the range of values; and its negative
HALF_RANGE = 127.5  # of 0..255
NUM_POINTS = 16  # for expectations over earlier channels


class Seen(NamedTuple):
    """What a data layer sees besides the code."""

    previous: Any = None  # of the previous blocks; None: nothing
    condition: Any = None  # of the condition; None: there is none


NOTHING_SEEN = Seen()


class DataLayer(nn.Module):
    """Networks of a data layer; a subclass says what distribution their outputs parametrize.

    Attributes:
        block_shape: (h, w, channels) of a block.
        is_whole_image: whether the block is the whole image, which none come before.
        space: the data space, the same for all layers of a class.
        head_scale: scale of the initial output weights, how near γ starts to `parameters_start`.
    """

    space: ClassVar[DataSpace] = data_space.BINARY
    head_scale: ClassVar[float] = 1.0

    config: ModelConfig
    block_shape: tuple[int, ...]
    is_whole_image: bool = False

    @property
    def sees_previous(self) -> bool:
        """Whether the layer sees the blocks before its own."""
        return self.config.couple_data and not self.is_whole_image

    @property
    def parameters_per_pixel(self) -> int:
        """How many parameters γ the distribution has per pixel: here one a channel."""
        return self.block_shape[-1]

    @property
    def parameters_start(self) -> tuple[float, ...]:
        """Values that the parameters of a pixel start near, or one for all of them."""
        return (0.0,)

    def setup(self) -> None:
        """Creates γ¹ and, where the layer sees previous blocks, δγ."""
        config = with_maps(self.config, self.block_shape)
        shape = (*self.block_shape[:2], self.parameters_per_pixel)
        options: dict[str, Any] = {"bounded": False, "head_scale": self.head_scale}
        options["is_generative"] = True
        if self.config.data_channels:
            self.maps_shape = config.latent_shape
            self.to_maps = Dense(math.prod(self.maps_shape))
        self.base = create_network(config, shape, output_start=self.parameters_start, **options)
        self.condition = create_condition(config)
        if self.sees_previous:
            depth = config.num_hidden_layers - 1
            self.observed = create_features(config, num_hidden_layers=depth, is_generative=True)
            self.residual = create_network(
                config, shape, num_joint_layers=config.num_joint_layers, **options
            )

    def observe(self, previous: Array | None, condition: Array | None = None) -> Seen:
        """What γ takes from the previous blocks [..., j, h, w, channels] and a condition [..., C].

        Nothing of the blocks if there are none or the layer is uncoupled.
        """
        return self.observe_read(
            None if previous is None else self.read_previous(previous), condition
        )

    def observe_read(self, values: Array | None, condition: Array | None) -> Seen:
        """The same of what `read_previous` made of the blocks."""
        offset = None
        if self.sees_previous and values is not None:
            offset = self.observed(values, 4, condition)
        return Seen(offset, None if condition is None else self.condition(condition))

    def __call__(self, z: Array | None, seen: Seen = NOTHING_SEEN) -> Any:
        """γ [..., h, w, parameters_per_pixel] of codes z, if there are latents.

        z is `Latents.codes`: [..., *latent_shape], and `state_size` more along the last axis.

        Without previous blocks in `seen`, which is from `observe`, it is γ¹(z) alone.
        """
        offset, condition = seen
        event_ndims = len(self.config.latent_shape)
        if self.config.data_channels and z is not None:
            z, event_ndims = self.to_maps(z).reshape(*z.shape[:-1], *self.maps_shape), 3
        parameters = self.base(z, event_ndims, None, condition)
        if offset is not None:
            parameters += self.residual(z, event_ndims, offset)
        return parameters

    def to_network(self, x: Array) -> Array:
        """x in data space to the float32 values that networks read."""
        return x.astype(jnp.float32)

    def read_previous(self, previous: Array) -> Array:
        """`to_network` of the previous blocks [..., j, h, w, channels], with pixels dropped.

        Where there are keys called `dropout`, the share `config.block_dropout` of the pixels is 0
        in all channels, others in each call; what is kept is not rescaled.
        """
        values, share = self.to_network(previous), self.config.block_dropout
        if not (share and self.has_rng("dropout")):
            return values
        shape = (*values.shape[:-1], 1)
        is_kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - share, shape)
        return jnp.where(is_kept, values, 0.0)

    def block_log_prob(
        self, parameters: Any, block: Shaped[Array, "*batch h w channels"], mask: Array | None
    ) -> Float[Array, "..."]:
        """log p(x_l | γ) in nats, [...].

        The mask [h, w, 1] is 0 where the block is padding; None: nowhere.
        """
        log_prob = self.log_prob(parameters, block)
        log_prob = log_prob if mask is None else log_prob * mask
        return jnp.sum(log_prob, axis=(-3, -2, -1))

    def sample_blocks(self, parameters: Any, keys: Array, mask: Array | None) -> Array:
        """Blocks [B, h, w, channels] in data space, each from its own key [B]; 0 at padding."""
        blocks = jax.vmap(self.sample)(parameters, keys)
        return blocks if mask is None else jnp.where(mask > 0, blocks, 0)

    def expected_blocks(self, parameters: Any, blocks: Array) -> Array:
        """What figures show of `blocks` [B, h, w, channels] that were drawn: their expectation."""
        del blocks
        return self.mean(parameters)

    def log_prob(self, parameters: Array, block: Array) -> Array:
        """log p(x_l | γ) in nats of each pixel, [..., h, w, 1 or channels]."""
        raise NotImplementedError

    def sample(self, parameters: Array, key: Array) -> Array:
        """A block [..., h, w, channels] in data space."""
        raise NotImplementedError

    def mean(self, parameters: Array) -> Array:
        """Expected block [..., h, w, channels], float32, in the units of the data space."""
        raise NotImplementedError


class BernoulliDataLayer(DataLayer):
    """Binary pixels; γ are logits."""

    def log_prob(self, parameters: Array, block: Array) -> Array:
        """x γ - log(1 + exp γ) in nats of each pixel, for x in {0, 1}."""
        return -jax.nn.softplus((1.0 - 2.0 * block) * parameters)

    def sample(self, parameters: Array, key: Array) -> Array:
        """A block of zeros and ones, float32."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(parameters)).astype(jnp.float32)

    def mean(self, parameters: Array) -> Array:
        """Probability that a pixel is 1."""
        return jax.nn.sigmoid(parameters)


class GaussianDataLayer(DataLayer):
    """Real-valued pixels, independent given γ.

    γ are means and, unless `config.data_scale` is the standard deviation of all pixels, raw scales.
    """

    space = data_space.UNIT_INTERVAL

    @property
    def parameters_per_pixel(self) -> int:
        """A mean for each channel, and a scale where it is learned."""
        return self.block_shape[-1] * (1 if self.config.data_scale else 2)

    def log_prob(self, parameters: Array, block: Array) -> Array:
        """log N(x; mean, scale²) in nats of each pixel, for real x."""
        mean, scale = self._mean_and_scale(parameters)
        standardized = (block - mean) / scale
        return -0.5 * (jnp.square(standardized) + math.log(2 * math.pi)) - jnp.log(scale)

    def sample(self, parameters: Array, key: Array) -> Array:
        """A block of real numbers, float32."""
        mean, scale = self._mean_and_scale(parameters)
        return mean + scale * jax.random.normal(key, mean.shape)

    def mean(self, parameters: Array) -> Array:
        """Expectation of each pixel."""
        return self._mean_and_scale(parameters)[0]

    def _mean_and_scale(self, parameters: Array) -> tuple[Array, Array]:
        if self.config.data_scale:
            return parameters, jnp.float32(self.config.data_scale)
        mean, raw_scale = jnp.split(parameters, 2, axis=-1)
        # Bounded below: on a pixel that never changes the likelihood would have no maximum.
        return mean, MIN_SCALE + jax.nn.softplus(raw_scale)


class _Mixture(NamedTuple):
    """Parameters of discretized logistics, each [..., h, w, num_mixtures]."""

    log_weights: Array
    means: list[Array]  # of each channel, before it is shifted
    log_scales: list[Array]  # of each channel
    shifts: list[Array]  # of each pair of channels: (1, 0), (2, 0), (2, 1), ...

    def mean(self, channel: int, values: Array) -> Array:
        """Means of a channel given values [..., h, w, 1 or num_mixtures, channels] in [-1, 1]."""
        first = channel * (channel - 1) // 2
        mean = self.means[channel]
        for before in range(channel):
            mean = mean + self.shifts[first + before] * values[..., before]
        return mean


class DiscretizedLogisticMixtureDataLayer(DataLayer):
    """Pixels of 256 values, a mixture of discretized logistics (Salimans et al. 2017, section 2).

    x is uint8, or floats that hold its values. A pixel draws one of `config.num_mixtures`
    components for all of its channels; in it each channel is logistic, rounded to the nearest of
    the 256 values, with all that lies beyond 0 and 255 in these two. Its mean is shifted by the
    values of the channels before it (red, green, blue).
    """

    space = data_space.BYTES
    head_scale = 0.1  # or the components would start anywhere

    @property
    def parameters_per_pixel(self) -> int:
        """Of each component: weight; mean and scale of each channel; a shift for each pair."""
        channels = self.block_shape[-1]
        return self.config.num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    @property
    def parameters_start(self) -> tuple[float, ...]:
        """Means spread over the range of values, with scales that just fill it.

        On photographs, 150 updates from there reach 5.7 bits/dim, and from means of 0 with scales
        of 1, which is half the range, 6.0.
        """
        channels, num = self.block_shape[-1], self.config.num_mixtures
        means = [(2 * k + 1) / num - 1 for k in range(num)]
        log_scale = -math.log(2 * num)
        others = self.parameters_per_pixel - num * (1 + 2 * channels)
        return (
            *(0.0 for _ in range(num)),
            *(mean for _ in range(channels) for mean in means),
            *(log_scale for _ in range(channels * num)),
            *(0.0 for _ in range(others)),
        )

    def to_network(self, x: Array) -> Array:
        """0..255 to [-1, 1]."""
        return x.astype(jnp.float32) / HALF_RANGE - 1.0

    def log_prob(self, parameters: Array, block: Array) -> Array:
        """log P(x_l | γ) in nats of each pixel, [..., h, w, 1]."""
        mixture = self._mixture(parameters)
        values = self.to_network(block)[..., None, :]
        log_prob = jnp.zeros(())
        for channel, log_scale in enumerate(mixture.log_scales):
            mean = mixture.mean(channel, values)
            inverse_scale = jnp.exp(-log_scale)
            centered = values[..., channel] - mean
            upper = inverse_scale * (centered + 0.5 / HALF_RANGE)
            lower = inverse_scale * (centered - 0.5 / HALF_RANGE)
            # log(σ(a) - σ(b)) = log σ(a) + log σ(-b) + log(1 - exp(b - a)), stable everywhere; at
            # 0 the lower end of the bin is -infinity, at 255 the upper one infinity.
            inside = jnp.log(-jnp.expm1(-inverse_scale / HALF_RANGE))
            is_lowest, is_highest = block[..., None, channel] == 0, block[..., None, channel] == 255
            log_prob += jnp.where(is_highest, 0.0, jax.nn.log_sigmoid(upper))
            log_prob += jnp.where(is_lowest, 0.0, jax.nn.log_sigmoid(-lower))
            log_prob += jnp.where(is_lowest | is_highest, 0.0, inside)
        return jax.nn.logsumexp(mixture.log_weights + log_prob, axis=-1, keepdims=True)

    def sample(self, parameters: Array, key: Array) -> Array:
        """A block of uint8."""
        mixture = self._mixture(parameters)
        component_key, value_key = jax.random.split(key)
        chosen = jax.random.categorical(component_key, mixture.log_weights)[..., None]
        noise = jax.random.logistic(value_key, (*chosen.shape[:-1], self.block_shape[-1]))
        values = jnp.zeros((*chosen.shape, self.block_shape[-1]))
        for channel, log_scale in enumerate(mixture.log_scales):
            mean = mixture.mean(channel, values)
            value = jnp.take_along_axis(mean, chosen, axis=-1)
            scale = jnp.exp(jnp.take_along_axis(log_scale, chosen, axis=-1))
            value += scale * noise[..., channel, None]
            value = jnp.clip(jnp.round((value + 1.0) * HALF_RANGE), 0.0, 255.0)
            values = values.at[..., channel].set(self.to_network(value))
        return jnp.round((values[..., 0, :] + 1.0) * HALF_RANGE).astype(jnp.uint8)

    def mean(self, parameters: Array) -> Array:
        """Expectation of each channel, in 0..255.

        Those of later channels are means over `NUM_POINTS` values of the channels before them in
        each component.
        """
        mixture = self._mixture(parameters)
        weights = jnp.exp(mixture.log_weights)
        pieces = jax.tree.map(lambda piece: piece[..., None], mixture)
        values = jnp.zeros((*weights.shape, NUM_POINTS, self.block_shape[-1]))
        means = []
        for channel, log_scale in enumerate(pieces.log_scales):
            mean = (pieces.mean(channel, values) + 1.0) * HALF_RANGE
            scale = jnp.exp(log_scale) * HALF_RANGE
            expected = jnp.mean(logistics.expectation(mean, scale), axis=-1)
            means.append(jnp.sum(weights * expected, axis=-1))
            drawn = mean + scale * logistics.quantiles(NUM_POINTS, channel)
            drawn = jnp.clip(jnp.round(drawn), 0.0, 255.0)
            values = values.at[..., channel].set(self.to_network(drawn))
        return jnp.stack(means, axis=-1)

    def _mixture(self, parameters: Array) -> _Mixture:
        channels, num = self.block_shape[-1], self.config.num_mixtures
        pieces = jnp.split(parameters, parameters.shape[-1] // num, axis=-1)
        log_weights, pieces = jax.nn.log_softmax(pieces[0]), pieces[1:]
        log_scales = [
            jnp.clip(piece, -MAX_LOG_SCALE, MAX_LOG_SCALE)
            for piece in pieces[channels : 2 * channels]
        ]
        shifts = [jnp.tanh(piece) for piece in pieces[2 * channels :]]
        return _Mixture(log_weights, pieces[:channels], log_scales, shifts)
