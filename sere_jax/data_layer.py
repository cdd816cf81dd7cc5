"""Data layers p(x_l | z_l, x_{l-1}) with the residual parametrization (paper, section 3.4.3).

γ_l = γ¹(z_l) + δγ(x_{l-1}, z_l) are the parameters of the block's distribution. What depends on
the previous blocks alone is computed by `observe`, once an image; the rest by `__call__`. To add a
data layer, derive from `DataLayer` and enter it in `DATA_LAYERS`, from whatever file.
"""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from sere_jax import data_space
from sere_jax.config import FLOW, ModelConfig, choose
from sere_jax.data_space import DataSpace
from sere_jax.flows.bijectors import MaskedAutoregressiveFlows, RankOneNormal
from sere_jax.networks.family import create_features, create_network
from sere_jax.networks.mlp import flatten

Array = jax.Array

MIN_SCALE = 1e-3  # of Gaussian pixels whose scale is learned
MAX_LOG_SCALE = 7.0  # of logistics, in units of half the range of values; and its negative
HALF_RANGE = 127.5  # of 0..255
MAX_LOG_VARIANCE = 6.0  # of the base of a flow, and its negative
DIRECTION_START = 0.05  # of v, the common part of the base of a flow


class DataLayer(nn.Module):
    """Networks of a data layer; a subclass says what distribution their outputs parametrize.

    Attributes:
        config: the model's configuration.
        block_shape: (h, w, channels) of a block.
        is_whole_image: whether the block is the whole image, which none come before.
        space: the data space, the same for all layers of a class.
    """

    space: ClassVar[DataSpace] = data_space.BINARY

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

    @property
    def head_scale(self) -> float:
        """Scale of the initial output weights: how near."""
        return 1.0

    def setup(self):
        """Creates γ¹ and, where the layer sees previous blocks, δγ."""
        shape = (*self.block_shape[:2], self.parameters_per_pixel)
        options = {"bounded": False, "head_scale": self.head_scale}
        self.base = create_network(
            self.config, shape, output_start=self.parameters_start, **options
        )
        if self.sees_previous:
            self.observed = create_features(
                self.config, num_hidden_layers=self.config.num_hidden_layers - 1
            )
            self.residual = create_network(
                self.config, shape, num_joint_layers=self.config.num_joint_layers, **options
            )

    def observe(self, previous: Array) -> Any:
        """Offset of δγ from the previous blocks [..., j, h, w, channels]; None if uncoupled."""
        if not self.sees_previous:
            return None
        return self.observed(self.to_network(previous), 4)

    def __call__(self, z: Array | None, offset: Any) -> Any:
        """γ [..., h, w, parameters_per_pixel].

        Args:
            z: [..., *latent_shape], or None where there are no latents.
            offset: from `observe`; None leaves γ¹(z) alone.
        """
        event_ndims = len(self.config.latent_shape)
        parameters = self.base(z, event_ndims, None)
        if offset is not None:
            parameters += self.residual(z, event_ndims, offset)
        return parameters

    def to_network(self, x: Array) -> Array:
        """x in data space to the float32 values that networks read."""
        return x.astype(jnp.float32)

    def block_log_prob(self, parameters: Any, block: Array, mask: Array | None) -> Array:
        """log p(x_l | γ) in nats, [...].

        Args:
            parameters: γ.
            block: [..., h, w, channels] in data space.
            mask: [h, w, 1], 0 where the block is padding; None: nowhere.
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

    def _mean_and_scale(self, parameters):
        if self.config.data_scale:
            return parameters, jnp.float32(self.config.data_scale)
        mean, raw_scale = jnp.split(parameters, 2, axis=-1)
        # Bounded below: on a pixel that never changes the likelihood would have no maximum.
        return mean, MIN_SCALE + jax.nn.softplus(raw_scale)


class DiscretizedLogisticMixtureDataLayer(DataLayer):
    """Pixels of 256 values, a mixture of discretized logistics (Salimans et al. 2017, section 2).

    x is uint8, or floats that hold its values. A pixel draws one of `config.num_mixtures`
    components for all of its channels; in it each channel is logistic, rounded to the nearest of
    the 256 values, with all that lies beyond 0 and 255 in these two. Its mean is shifted by the
    values of the channels before it (red, green, blue).
    """

    space = data_space.BYTES

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

    @property
    def head_scale(self) -> float:
        """Small, or the components would start anywhere."""
        return 0.1

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
        """Mean of the components' means, in 0..255; values beyond it are moved to its ends."""
        mixture = self._mixture(parameters)
        values = jnp.zeros((*mixture.log_weights.shape, self.block_shape[-1]))
        for channel in range(self.block_shape[-1]):
            mean = jnp.clip(mixture.mean(channel, values), -1.0, 1.0)
            values = values.at[..., channel].set(mean)
        weights = jnp.exp(mixture.log_weights)[..., None]
        return (jnp.sum(weights * values, axis=-2) + 1.0) * HALF_RANGE

    def _mixture(self, parameters):
        channels, num = self.block_shape[-1], self.config.num_mixtures
        pieces = jnp.split(parameters, parameters.shape[-1] // num, axis=-1)
        log_weights, pieces = jax.nn.log_softmax(pieces[0]), pieces[1:]
        log_scales = [
            jnp.clip(piece, -MAX_LOG_SCALE, MAX_LOG_SCALE)
            for piece in pieces[channels : 2 * channels]
        ]
        shifts = [jnp.tanh(piece) for piece in pieces[2 * channels :]]
        return _Mixture(log_weights, pieces[:channels], log_scales, shifts)


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


@struct.dataclass
class FlowParameters:
    """What a flow over a block x_l depends on."""

    base: Array | None  # [..., h, w, 3 * channels], of its base; None: standard normal
    z: Array | None  # [..., latents]
    previous: Array | None  # [..., size of the blocks], x_{l-1} and those before it


class MaskedAutoregressiveFlowDataLayer(DataLayer):
    """Masked autoregressive flows over a block, conditional on z_l and x_{l-1} (paper, 4.2.2).

    x_l = f(u) with `config.num_flows` flows of alternating order, whose networks see z_l and
    x_{l-1} unmasked, and u ~ N(m, diag(s) + v vᵀ), where γ = (m, log s, v) is residual as in the
    other data layers. x is in logit space (`sere_jax.logit_transform`), and so is the density. A
    model without latents and previous blocks is a plain flow from a standard normal base.
    """

    space = data_space.LOGITS

    @property
    def parameters_per_pixel(self) -> int:
        """m, log s and v of each channel."""
        return 3 * self.block_shape[-1]

    @property
    def parameters_start(self) -> tuple[float, ...]:
        """A standard normal base, but for v: v = 0 would be a saddle."""
        channels = self.block_shape[-1]
        return (*(0.0 for _ in range(2 * channels)), *(DIRECTION_START for _ in range(channels)))

    @property
    def head_scale(self) -> float:
        """Near the standard normal base."""
        return 0.1

    def setup(self):
        """Creates the networks of γ, unless there is nothing they could depend on, and the flow."""
        config = self.config
        self.is_conditional = config.has_latents or self.sees_previous
        if self.is_conditional:
            super().setup()
        hidden_sizes = (config.flow_hidden_size,) * config.num_hidden_layers
        self.flow = MaskedAutoregressiveFlows(
            (self._size,), hidden_sizes, config.num_flows, config.flow_direct_connections
        )

    def observe(self, previous: Array) -> Any:
        """The previous blocks, and what γ takes from them; None if uncoupled."""
        if not self.sees_previous:
            return None
        return flatten(self.to_network(previous), 4), super().observe(previous)

    def __call__(self, z: Array | None, offset: Any) -> FlowParameters:
        """See `DataLayer`; without an offset the flow does not see x_{l-1} either."""
        if not self.is_conditional:
            return FlowParameters(None, None, None)
        previous, residual_offset = (None, None) if offset is None else offset
        base = super().__call__(z, residual_offset)
        codes = None if z is None else flatten(z, len(self.config.latent_shape))
        return FlowParameters(base, codes, previous)

    def block_log_prob(self, parameters: FlowParameters, block: Array, mask: Array | None) -> Array:
        """Log-density in nats in logit space, [...]."""
        mask, x = self._flatten_mask(mask), flatten(block, 3)
        u, log_det = self._bijector(parameters, mask, x).inverse_and_log_det(x)
        return self._base(parameters, mask).log_prob(u) + log_det

    def sample_blocks(self, parameters: FlowParameters, keys: Array, mask: Array | None) -> Array:
        """Blocks in logit space, pixel by pixel; padding is 0."""
        mask = self._flatten_mask(mask)
        noise = jax.vmap(lambda key: jax.random.normal(key, (self._size + 1,)))(keys)
        u = self._base(parameters, mask).sample(noise[:, 1:], noise[:, 0])
        x = self._bijector(parameters, mask, None).forward(u)
        return x.reshape(-1, *self.block_shape)

    def expected_blocks(self, parameters: FlowParameters, blocks: Array) -> Array:
        """The blocks themselves: the expectation of a flow has no closed form."""
        del parameters
        return blocks

    @property
    def _size(self):
        return math.prod(self.block_shape)

    def _flatten_mask(self, mask):
        return None if mask is None else jnp.broadcast_to(mask, self.block_shape).reshape(-1)

    def _bijector(self, parameters, mask, x):
        previous = parameters.previous
        return self.flow(parameters.z, previous, x=x, mask=mask, observed=previous)

    def _base(self, parameters, mask):
        if parameters.base is None:
            zeros, ones = jnp.zeros(self._size), jnp.ones(self._size)
            return RankOneNormal(zeros, ones, zeros, mask)
        mean, log_variance, direction = (
            flatten(part, 3) for part in jnp.split(parameters.base, 3, axis=-1)
        )
        log_variance = MAX_LOG_VARIANCE * jnp.tanh(log_variance / MAX_LOG_VARIANCE)
        return RankOneNormal(mean, jnp.exp(log_variance), direction, mask)


DATA_LAYERS: dict[str, type[DataLayer]] = {
    "bernoulli": BernoulliDataLayer,
    "discretized_logistic_mixture": DiscretizedLogisticMixtureDataLayer,
    "gaussian": GaussianDataLayer,
    FLOW: MaskedAutoregressiveFlowDataLayer,
}


def create_data_layer(
    config: ModelConfig, block_shape: tuple[int, ...], *, is_whole_image: bool = False
) -> DataLayer:
    """The data layer called `config.data_layer`; see `DataLayer` for what it is given."""
    return _class_of(config)(config, block_shape, is_whole_image)


def data_space_of(config: ModelConfig) -> DataSpace:
    """The data space of the data layer called `config.data_layer`."""
    return _class_of(config).space


def _class_of(config):
    return choose("data_layer", config.data_layer, DATA_LAYERS)
