"""The data layer of the SeRe-MAF: conditional autoregressive flows (paper, section 4.2.2)."""

import math

import distrax
import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from sere_jax import data_space
from sere_jax.arrays import Array, flatten, masked, record
from sere_jax.flows.autoregressive import MaskedAutoregressiveFlows
from sere_jax.pixels import NOTHING_SEEN, DataLayer, Seen

MAX_LOG_VARIANCE = 6.0  # of the base, and its negative
DIRECTION_START = 0.05  # of v, the common part of the base


@record
class RankOneNormal:
    """N(mean, diag(variance) + direction directionᵀ) over the last axis, D.

    Densities and samples cost O(D), by the Sherman-Morrison formula and the matrix determinant
    lemma. `distrax.MultivariateNormalDiagPlusLowRank` perturbs the factor of the covariance, not
    the covariance.
    """

    mean: Float[Array, "*#batch D"]
    variance: Float[Array, "*#batch D"]  # positive
    direction: Float[Array, "*#batch D"]
    mask: Shaped[Array, " D"] | None = None  # 0 in dimensions that are left out; None: nowhere

    def log_prob(self, x: Array) -> Array:
        """Log-density in nats of x [..., D], [...]."""
        centered = masked(x - self.mean, self.mask)
        weight = masked(self.direction, self.mask) / self.variance
        capacitance = 1.0 + jnp.sum(self.direction * weight, axis=-1)
        distance = jnp.sum(jnp.square(centered) / self.variance, axis=-1)
        distance -= jnp.square(jnp.sum(weight * centered, axis=-1)) / capacitance
        log_det = jnp.sum(masked(jnp.log(self.variance), self.mask), axis=-1)
        size = x.shape[-1] if self.mask is None else jnp.sum(self.mask)
        constant = size * math.log(2 * math.pi)
        return -0.5 * (distance + log_det + jnp.log(capacitance) + constant)

    def sample(self, noise: Array, common_noise: Array) -> Array:
        """A sample [..., D] for standard normal noise [..., D] and [...]; 0 where left out."""
        common = self.direction * common_noise[..., None]
        return masked(self.mean + jnp.sqrt(self.variance) * noise + common, self.mask)


@record
class FlowParameters:
    """What a flow over a block x_l depends on."""

    # Of its base: 3 a channel; None: standard normal.
    base: Float[Array, "*#batch h w parameters"] | None
    z: Float[Array, "*#batch latents"] | None
    previous: Float[Array, "*#batch pixels"] | None  # x_{l-1} and the blocks before it
    condition: Float[Array, "*#batch C"] | None = None


class MaskedAutoregressiveFlowDataLayer(DataLayer):
    """Masked autoregressive flows over a block, conditional on z_l and x_{l-1} (paper, 4.2.2).

    x_l = f(u) with `config.num_flows` flows of alternating order, whose networks see z_l, x_{l-1}
    and a condition unmasked, and u ~ N(m, diag(s) + v vᵀ), where γ = (m, log s, v) is residual as
    in the other data layers. x is in logit space (`sere_jax.logit_transform`), and so is the
    density. A model without latents, previous blocks and a condition is a plain flow from a
    standard normal base.
    """

    space = data_space.LOGITS
    head_scale = 0.1  # near the standard normal base

    @property
    def parameters_per_pixel(self) -> int:
        """m, log s and v of each channel."""
        return 3 * self.block_shape[-1]

    @property
    def parameters_start(self) -> tuple[float, ...]:
        """A standard normal base, but for v: v = 0 would be a saddle."""
        channels = self.block_shape[-1]
        return (*(0.0 for _ in range(2 * channels)), *(DIRECTION_START for _ in range(channels)))

    def setup(self) -> None:
        """Creates the networks of γ, unless there is nothing they could depend on, and the flow."""
        config = self.config
        self.is_conditional = bool(
            config.has_latents or self.sees_previous or config.condition_size
        )
        if self.is_conditional:
            super().setup()
        hidden_sizes = (config.flow_hidden_size,) * config.num_hidden_layers
        self.flow = MaskedAutoregressiveFlows(
            (self._size,), hidden_sizes, config.num_flows, config.flow_direct_connections
        )

    def observe(self, previous: Array | None, condition: Array | None = None) -> Seen:
        """The previous blocks and the condition, each with what γ takes from it."""
        if not self.is_conditional:
            return NOTHING_SEEN
        seen = None if previous is None else self.read_previous(previous)
        offset, of_base = self.observe_read(seen, condition)
        if seen is not None and offset is not None:
            offset = flatten(seen, 4), offset
        return Seen(offset, None if condition is None else (condition, of_base))

    def __call__(self, z: Array | None, seen: Seen = NOTHING_SEEN) -> FlowParameters:
        """See `DataLayer`; where γ does not see x_{l-1}, the flow does not either."""
        if not self.is_conditional:
            return FlowParameters(None, None, None)
        previous, offset = seen.previous or (None, None)
        condition, of_base = seen.condition or (None, None)
        base = super().__call__(z, Seen(offset, of_base))
        codes = None if z is None else flatten(z, len(self.config.latent_shape))
        if previous is None and codes is not None and self.sees_previous:
            # What is left out keeps its place among the conditions.
            size = self.config.data_context * self._size
            previous = jnp.zeros((*codes.shape[:-1], size))
        return FlowParameters(base, codes, previous, condition)

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
    def _size(self) -> int:
        return math.prod(self.block_shape)

    def _flatten_mask(self, mask: Array | None) -> Array | None:
        return None if mask is None else jnp.broadcast_to(mask, self.block_shape).reshape(-1)

    def _bijector(
        self, parameters: FlowParameters, mask: Array | None, x: Array | None
    ) -> distrax.Bijector:
        previous, condition = parameters.previous, parameters.condition
        return self.flow(parameters.z, previous, condition, x=x, mask=mask, observed=previous)

    def _base(self, parameters: FlowParameters, mask: Array | None) -> RankOneNormal:
        if parameters.base is None:
            zeros, ones = jnp.zeros(self._size), jnp.ones(self._size)
            return RankOneNormal(zeros, ones, zeros, mask)
        mean, log_variance, direction = (
            flatten(part, 3) for part in jnp.split(parameters.base, 3, axis=-1)
        )
        log_variance = MAX_LOG_VARIANCE * jnp.tanh(log_variance / MAX_LOG_VARIANCE)
        return RankOneNormal(mean, jnp.exp(log_variance), direction, mask)
