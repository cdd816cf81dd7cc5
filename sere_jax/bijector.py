"""Bijective layers z_l = f_l(ε_l ; z_{l-1}), shared by generation and inference (paper, 3.3).

A bijective layer is a Linen module that maps the window of codes to a distrax bijector with one
event of shape `latent_shape`. The window [..., k, *latent_shape] holds the last k codes or, with
`state_size`, the state of all codes so far alone, [..., 1, *state_shape]. In a model with a
condition it is also given what `create_condition` makes of it, [..., hidden_size]. To add one,
write the module and enter it in `BIJECTORS`, from whatever file.
"""

import inspect
import math
from typing import ClassVar

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn

from sere_jax.arrays import Array, flatten
from sere_jax.config import ConfigError, ModelConfig, choose
from sere_jax.flows.autoregressive import MaskedAutoregressiveFlow
from sere_jax.flows.coupling import SplineCoupling
from sere_jax.networks.activations import tanh
from sere_jax.networks.family import create_network
from sere_jax.networks.products import Dense


class RankOneAffine(distrax.Bijector):
    """z = b + (diag(d) + u uᵀ) ε with d > 0, over the flattened event.

    Forward and inverse cost O(N) for N latents, by the Sherman-Morrison formula, and the
    log-determinant log|det| = Σ log d + log(1 + Σ u²/d) by the matrix determinant lemma, where
    `distrax.DiagPlusLowRankLinear` would factorize a matrix for every example.

    shift is b, diagonal d and direction u, all [..., *latent_shape] with `event_ndims` axes.
    """

    def __init__(self, shift: Array, diagonal: Array, direction: Array, event_ndims: int = 1):
        super().__init__(event_ndims_in=event_ndims)
        self.shift = shift
        self.diagonal = diagonal
        self.direction = direction

    def forward(self, x: Array) -> Array:
        """ε to z."""
        projection = self._sum(self.direction * x, keepdims=True)
        return self.shift + self.diagonal * x + self.direction * projection

    def inverse(self, y: Array) -> Array:
        """z to ε."""
        scaled = (y - self.shift) / self.diagonal
        weight = self.direction / self.diagonal
        capacitance = 1.0 + self._sum(self.direction * weight, keepdims=True)
        projection = self._sum(self.direction * scaled, keepdims=True)
        return scaled - weight * projection / capacitance

    def forward_log_det_jacobian(self, x: Array) -> Array:
        """log|det dz/dε| [...], constant in x."""
        weight = jnp.square(self.direction) / self.diagonal
        log_det = self._sum(jnp.log(self.diagonal)) + jnp.log1p(self._sum(weight))
        batch_shape = x.shape[: x.ndim - self.event_ndims_in]
        return jnp.broadcast_to(log_det, jnp.broadcast_shapes(batch_shape, log_det.shape))

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """z and log|det dz/dε|."""
        return self.forward(x), self.forward_log_det_jacobian(x)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """ε and log|det dε/dz|."""
        return self.inverse(y), -self.forward_log_det_jacobian(y)

    def _sum(self, values: Array, keepdims: bool = False) -> Array:
        return jnp.sum(values, axis=tuple(range(-self.event_ndims_in, 0)), keepdims=keepdims)


class RankOneAffineLayer(nn.Module):
    """Window of codes to a `RankOneAffine`, near the identity at the start.

    On maps u is one direction of all positions together, so that f_l can couple any two of them;
    with one direction a position it could only mix the few channels there.

    d lies in (`bijector_diagonal_min`, 2) and u uᵀ has a norm below 1: the overall scale of z is a
    gauge that the layers reading z can undo, and without these bounds the product of d over the
    layers diverges.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, window: Array | None, condition: Array | None = None) -> distrax.Bijector:
        """window, or None: a bijector that is the same for all codes."""
        shape = self.config.latent_shape
        num_latents = math.prod(shape)
        network = create_network(
            self.config, (*shape[:-1], 3 * shape[-1]), head_scale=0.1, name="network"
        )
        parameters = network(window, 1 + len(shape), None, condition)
        shift, diagonal, direction = jnp.split(parameters, 3, axis=-1)
        carried = 0.0 if window is None else self.config.carry_start
        if window is not None and carried:
            carry = self.param("carry", nn.initializers.constant(carried), shape[-1:])
            shift += carry * jnp.take(window, -1, axis=-1 - len(shape))
        # Without a constant to start from, u = 0 would be a saddle: d(u uᵀ)/du vanishes there.
        direction_start = self.param("direction_start", nn.initializers.normal(0.3), shape)
        low = self.config.bijector_diagonal_min
        start = (math.sqrt(1.0 - carried**2) - low) / (2.0 - low)
        raw = diagonal + math.log(start) - math.log1p(-start)
        return RankOneAffine(
            shift=shift,
            diagonal=low + (2.0 - low) * jax.nn.sigmoid(raw),
            direction=jnp.tanh(direction + direction_start) / math.sqrt(num_latents),
            event_ndims=len(shape),
        )


class Identity(distrax.Bijector):
    """z = ε. (`distrax.Lambda` would trace the identity to find its log-determinant.)"""

    def __init__(self, event_ndims: int = 1):
        super().__init__(event_ndims_in=event_ndims, is_constant_jacobian=True)

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """x and 0."""
        return x, jnp.zeros(x.shape[: x.ndim - self.event_ndims_in], x.dtype)

    inverse_and_log_det = forward_and_log_det

    def same_as(self, other: distrax.Bijector) -> bool:
        """Whether `other` is the identity too."""
        return isinstance(other, Identity)


class IdentityLayer(nn.Module):
    """No bijective layer: z_l = ε_l."""

    config: ModelConfig

    def __call__(self, window: Array | None, condition: Array | None = None) -> distrax.Bijector:
        """Ignores both."""
        del window, condition
        return Identity(len(self.config.latent_shape))


class _CodeFlow(nn.Module):
    """Base of bijective layers of the hierarchy: reads the codes and the condition as one."""

    config: ModelConfig

    def _condition(self, window: Array | None, condition: Array | None) -> Array | None:
        if window is None:
            return None if condition is None else tanh(condition)
        codes = flatten(window, 1 + len(self.config.latent_shape))
        hidden = Dense(self.config.hidden_size, name="codes")(codes)
        return tanh(hidden if condition is None else hidden + condition)


class SplineCouplingLayer(_CodeFlow):
    """Window of codes to spline couplings of ε."""

    @nn.compact
    def __call__(self, window: Array | None, condition: Array | None = None) -> distrax.Bijector:
        """window, or None: the same for all codes."""
        flow = SplineCoupling(self.config.latent_shape, self.config.hidden_size, name="flow")
        return flow(self._condition(window, condition))


class MaskedAutoregressiveLayer(_CodeFlow):
    """Window of codes to z_d = m_d + s_d ε_d with m, s functions of z_1 .. z_{d-1}; sequential."""

    gated: ClassVar[bool] = False

    @nn.compact
    def __call__(self, window: Array | None, condition: Array | None = None) -> distrax.Bijector:
        """window, or None: the same for all codes."""
        config = self.config
        flow = MaskedAutoregressiveFlow(
            config.latent_shape,
            (config.hidden_size,) * (config.num_hidden_layers - 1),
            gated=self.gated,
            name="flow",
        )
        return flow(self._condition(window, condition))


class InverseAutoregressiveLayer(MaskedAutoregressiveLayer):
    """Window of codes to z_d = g_d ε_d + (1 - g_d) m_d, in one pass (Kingma et al. 2016).

    Means m and gates 0 < g < 1 are functions of ε_1 .. ε_{d-1}.
    """

    gated: ClassVar[bool] = True

    def __call__(self, window: Array | None, condition: Array | None = None) -> distrax.Bijector:
        """window, or None: the same for all codes."""
        return distrax.Inverse(super().__call__(window, condition))


BIJECTORS: dict[str, type[nn.Module]] = {
    "rank_one_affine": RankOneAffineLayer,
    "spline_coupling": SplineCouplingLayer,
    "masked_autoregressive": MaskedAutoregressiveLayer,
    "inverse_autoregressive": InverseAutoregressiveLayer,
    "identity": IdentityLayer,
}


def create_bijector(config: ModelConfig) -> nn.Module:
    """The bijective layer called `config.bijector`."""
    layer = choose("bijector", config.bijector, BIJECTORS)
    if config.condition_size and "condition" not in inspect.signature(layer.__call__).parameters:
        raise ConfigError(
            f"config.model.bijector={config.bijector!r} takes no condition, which "
            f"condition_size={config.condition_size} needs; set condition_size to 0, or give "
            f"{layer.__name__}.__call__ an argument condition"
        )
    return layer(config) if config.has_latents else IdentityLayer(config)
