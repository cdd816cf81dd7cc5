"""One layer of the hierarchy: its prior, posterior, bijector, data layer and encoder."""

from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Shaped

from sere_jax.arrays import Array, masked, record
from sere_jax.bijector import IdentityLayer, create_bijector
from sere_jax.config import ModelConfig
from sere_jax.data_layer import create_data_layer
from sere_jax.networks.family import create_condition, create_features, create_refinement
from sere_jax.partition import create_partition
from sere_jax.pixels import Seen
from sere_jax.posterior import PosteriorLayer, Residual, posterior_sample
from sere_jax.prior import Prior, PriorLayer
from sere_jax.redraw import Redraw, redraw_missing
from sere_jax.top_down import TopDownState


class OfCondition(NamedTuple):
    """What the condition adds to a hidden layer [..., hidden_size]; None: nothing."""

    prior: Array | None = None
    bijector: Array | None = None


NO_CONDITION = OfCondition()


class GivenCode(NamedTuple):
    """A code that is not drawn."""

    z: Array  # [..., *latent_shape]
    is_given: Array  # bool; False: it is drawn after all


@record
class Observed:
    """What the layers know of the image, such as features [..., hidden_size]; None: nothing."""

    posterior: Float[Array, "..."] | None  # of what the encoder sees; None if there are no latents
    prior: Float[Array, "..."] | None  # of the previous blocks, for the prior
    data: Seen  # what the data layer takes from the previous blocks and the condition
    block: Shaped[Array, "*batch h w channels"]  # x_l
    condition: OfCondition  # for prior and bijector


@record
class Latents:
    """What a layer inferred."""

    epsilon: Float[Array, "*latents"]  # [..., *latent_shape]
    z: Float[Array, "*latents"]
    prior: Prior
    residual: Residual
    bijector: distrax.Bijector  # f_l, its parameters stacked over layers
    state: Float[Array, "..."] | None  # h_l [..., *state_shape]; None: there is none

    @property
    def codes(self) -> Array:
        """What the data layer reads: z, and h_l after its last axis, if there is a state."""
        return _with_state(self.z, self.state)


class Layer(nn.Module):
    """Layer l of the model: prior, posterior, bijector, data layer and encoder."""

    config: ModelConfig

    def setup(self) -> None:
        """Creates the parts; the prior's network and the bijector serve both directions."""
        config = self.config
        if config.has_shared_encoder:
            self.refinement = create_refinement(config)
        elif config.has_latents:
            self.encoder = create_features(config, num_hidden_layers=config.num_hidden_layers)
        self.prior = PriorLayer(config)
        self.posterior = PosteriorLayer(config)
        self.bijector = create_bijector(config)
        self.data_layer = create_data_layer(config, create_partition(config).block_shape)
        if config.state_size:
            self.top_down = TopDownState(config)
        if config.couple_data_to_prior:
            self.prior_observed = create_features(
                config, num_hidden_layers=config.num_hidden_layers - 1, is_generative=True
            )
        self.prior_condition = create_condition(config)
        self.bijector_condition = create_condition(config)

    def encode(self, x: Array, condition: Array | None = None) -> Array | None:
        """Features of x [..., *data_shape] and a condition [..., C] from an encoder of its own.

        With `encoder="local"` x are the blocks around its own, [..., 3, h, w, channels].
        """
        if not self.config.has_latents:
            return None
        event_ndims = 4 if self.config.encoder == "local" else 3
        return self.encoder(self.data_layer.to_network(x), event_ndims, condition)

    def refine(self, hidden: Array, _: None) -> tuple[Array, Array]:
        """One step of the shared encoder: what layer l - 1 gets, and the features of layer l."""
        return self.refinement(hidden)

    def observe(
        self,
        encoding: Array | None,
        previous: Array,
        block: Array,
        condition: Array | None = None,
    ) -> Observed:
        """What the layer knows of an image, given its features of x.

        `previous` are the blocks [..., j, h, w, channels] before its own, `block` is its own.
        """
        of_previous = self.observe_previous(previous, condition)
        return Observed(encoding, *of_previous, block, self.observe_condition(condition))

    def observe_previous(
        self, previous: Array, condition: Array | None = None
    ) -> tuple[Array | None, Seen]:
        """Features of the previous blocks for the prior and for the data layer."""
        prior = None
        if self.config.couple_data_to_prior:
            prior = self.prior_observed(self.data_layer.read_previous(previous), 4, condition)
        return prior, self.data_layer.observe(previous, condition)

    def observe_condition(self, condition: Array | None) -> OfCondition:
        """What a condition [..., C] adds to prior and bijector, where no features bring it."""
        if condition is None:
            return NO_CONDITION
        prior = bijector = None
        if self.prior.is_learned and not self.config.couple_data_to_prior:
            prior = self.prior_condition(condition)
        if not isinstance(self.bijector, IdentityLayer):
            bijector = self.bijector_condition(condition)
        return OfCondition(prior, bijector)

    def prior_and_bijector(
        self, window: Array, offset: Array | None, condition: OfCondition = NO_CONDITION
    ) -> tuple[Prior, distrax.Bijector]:
        """p(ε_l | ·) and f_l for the window (see `sere_jax.bijector`)."""
        config = self.config
        prior = self.prior(window if config.couple_prior else None, offset, condition.prior)
        # A bijective layer from elsewhere may take the window alone.
        given = () if condition.bijector is None else (condition.bijector,)
        return prior, self.bijector(window if config.couple_bijector else None, *given)

    def infer(
        self,
        window: Array,
        inputs: tuple[Array | None, Array | None, Array, Array | None, OfCondition],
        *,
        is_given: bool = False,
    ) -> tuple[Array, Latents]:
        """One step of inference.

        Args:
            window: the last codes [..., k, *latent_shape], newest last, or h_{l-1}
                [..., 1, *state_shape].
            inputs: `Observed.prior` and `posterior`; standard normal noise [..., *latent_shape];
                a mask [*latent_shape], 0 at codes that this layer does not have, or None; and
                `Observed.condition`.
            is_given: whether ε_l itself stands in place of the noise.

        Returns:
            The next window, and what the layer inferred.
        """
        prior_offset, offset, noise, mask, condition = inputs
        prior, bijector = self.prior_and_bijector(window, prior_offset, condition)
        residual = self.posterior(window if self.config.residual_sees_latents else None, offset)
        # Where the layer has no code, δμ = 0 and δσ = 1 make the KL vanish.
        residual = jax.tree.map(lambda parameter: masked(parameter, mask), residual)
        epsilon = noise if is_given else posterior_sample(prior, residual, noise)
        epsilon = masked(epsilon, mask)
        z = masked(bijector.forward(epsilon), mask)
        prior = prior.broadcast_to(epsilon.shape)
        residual = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, epsilon.shape), residual)
        window, state = self._push_code(window, z)
        return window, Latents(epsilon, z, prior, residual, bijector, state)

    def decode(self, codes: Array, seen: Seen) -> Any:
        """Parameters γ_l for `Latents.codes`; without previous blocks γ¹ alone."""
        return self.data_layer(codes if self.config.has_latents else None, seen)

    def evaluate(
        self, codes: Array, seen: Seen, block: Array, mask: Array | None
    ) -> tuple[Any, Array]:
        """Parameters γ_l, and log p(x_l | z_l, x_{l-1}) [...] in nats of a block."""
        parameters = self.decode(codes, seen)
        return parameters, self.data_layer.block_log_prob(parameters, block, mask)

    def redraw(
        self,
        codes: Array,
        seen: Seen,
        block: Array,
        missing: Array,
        keys: Array,
        mask: Array | None,
    ) -> tuple[Array, Redraw]:
        """A block drawn anew where `missing` [h, w, 1] is 1, from its own key [B].

        Returns:
            The block [B, h, w, channels], and log-probabilities of the old one and of it.
        """
        parameters = self.decode(codes, seen)
        return redraw_missing(self.data_layer, parameters, block, missing, keys, mask)

    def generate(
        self,
        carry: tuple[Array, Array],
        inputs: tuple[Array, Array, Array | None, Array | None, GivenCode | None],
        condition: Array | None = None,
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """One step of generation.

        Args:
            carry: windows of codes [B, k, *latent_shape], or the state [B, 1, *state_shape], and of
                blocks [B, j, h, w, channels].
            inputs: noise [B, *latent_shape] of ε_l, keys [B] of x_l, mask [h, w, 1] of the block or
                None, mask [*latent_shape] of the codes or None; and a code that takes the place of
                the one drawn, or None.
            condition: [B, C] or None.

        Returns:
            The next carry, and (block, its expectation).
        """
        window, previous = carry
        noise, keys, mask, code_mask, given = inputs
        prior_offset, seen = self.observe_previous(previous, condition)
        of_condition = self.observe_condition(condition)
        prior, bijector = self.prior_and_bijector(window, prior_offset, of_condition)
        z = masked(bijector.forward(masked(prior.sample(noise), code_mask)), code_mask)
        if given is not None:
            z = jnp.where(given.is_given, given.z, z)
        return self._emit(carry, z, seen, keys, mask)

    def regenerate(
        self,
        carry: tuple[Array, Array],
        inputs: tuple[Array, Array, Array | None],
        condition: Array | None,
        residual: bool,
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """One step of `generate` with the code z_l given; without `residual` γ¹(z_l) alone."""
        z, keys, mask = inputs
        seen = self.data_layer.observe(carry[1] if residual else None, condition)
        return self._emit(carry, z, seen, keys, mask)

    def _emit(
        self, carry: tuple[Array, Array], z: Array, seen: Seen, keys: Array, mask: Array | None
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Draws x_l: what the next layer gets, and the block and its expectation."""
        window, previous = carry
        window, state = self._push_code(window, z)
        parameters = self.decode(_with_state(z, state), seen)
        block = self.data_layer.sample_blocks(parameters, keys, mask)
        previous = _push(previous, block.astype(previous.dtype), event_ndims=3)
        return (window, previous), (block, self.data_layer.expected_blocks(parameters, block))

    def _push_code(self, window: Array, z: Array) -> tuple[Array, Array | None]:
        """The next window, and h_l; with a state, it alone is the window."""
        event_ndims = len(self.config.latent_shape)
        if not self.config.state_size:
            return _push(window, z, event_ndims), None
        axis = -1 - event_ndims
        state = self.top_down(jnp.squeeze(window, axis), z)
        return jnp.expand_dims(state, axis), state


def infer_step(layer: Layer, window: Array, inputs: tuple[Any, Any, Any]) -> tuple[Array, Latents]:
    """`Layer.infer` as a pure function, for the variables and keys of one layer and its inputs."""
    variables, rngs, of_layer = inputs
    stepped: Any = layer.apply(variables, window, of_layer, rngs=rngs, method=Layer.infer)
    return stepped[0], stepped[1]


def _with_state(z: Array, state: Array | None) -> Array:
    return z if state is None else jnp.concatenate([z, state], axis=-1)


def _push(window: Array, newest: Array, event_ndims: int) -> Array:
    """Drops the oldest entry of the window [..., k, *event] and appends the newest."""
    axis = window.ndim - event_ndims - 1
    kept = jax.lax.slice_in_dim(window, 1, None, axis=axis)
    return jnp.concatenate([kept, jnp.expand_dims(newest, axis)], axis=axis)
