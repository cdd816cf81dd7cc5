"""The hierarchy: one layer module, scanned over L stacked copies of its parameters.

Three phases, so that only what is sequential is scanned (paper, Figure 1 and Eqs. 2-7):

    observe   what depends on x alone, for all layers at once (encoders, previous blocks); or, with
              a shared encoder, from layer L to 1 (encoder)
    infer     z_{l-1} -> z_l, the scan over layers
    decode    the data layers and their likelihoods given all codes, for all layers at once

`generate` scans prior, bijector and data layer together, as each block needs the one before. What
the image or its blocks contribute to a layer is an offset of one of its hidden layers
(`sere_jax.networks.family`).
"""

import functools
from collections.abc import Callable
from typing import Any

import distrax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key, Shaped

from sere_jax import recurrence
from sere_jax.arrays import Array, Images, Noise, masked, record
from sere_jax.bijector import create_bijector
from sere_jax.config import ModelConfig
from sere_jax.data_layer import create_data_layer
from sere_jax.networks.family import create_features, create_refinement
from sere_jax.partition import create_partition, previous_blocks
from sere_jax.posterior import PosteriorLayer, Residual, posterior_sample
from sere_jax.prior import Prior, PriorLayer


@record
class Observed:
    """What the layers know of the image, such as features [..., hidden_size]; None: nothing."""

    posterior: Float[Array, "..."] | None  # of the whole image; None if there are no latents
    prior: Float[Array, "..."] | None  # of the previous blocks, for prior and posterior
    data: Any  # what the data layer takes from the previous blocks
    block: Shaped[Array, "*batch h w channels"]  # x_l


@record
class Latents:
    """What a layer inferred."""

    epsilon: Float[Array, "*latents"]  # [..., *latent_shape]
    z: Float[Array, "*latents"]
    prior: Prior
    residual: Residual
    bijector: distrax.Bijector  # f_l, its parameters stacked over layers


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
        if config.couple_data_to_prior:
            self.prior_observed = create_features(
                config, num_hidden_layers=config.num_hidden_layers - 1, is_generative=True
            )

    def encode(self, x: Array) -> Array | None:
        """Features of x [..., *data_shape] from an encoder of this layer's own."""
        return self.encoder(self.data_layer.to_network(x), 3) if self.config.has_latents else None

    def refine(self, hidden: Array, _: None) -> tuple[Array, Array]:
        """One step of the shared encoder: what layer l - 1 gets, and the features of layer l."""
        return self.refinement(hidden)

    def observe(self, encoding: Array | None, previous: Array, block: Array) -> Observed:
        """All features, given those of x; of the blocks [..., j, h, w, channels] before."""
        return Observed(encoding, *self.observe_previous(previous), block)

    def observe_previous(self, previous: Array) -> tuple[Array | None, Any]:
        """Features of the previous blocks for the prior and for the data layer."""
        prior = None
        if self.config.couple_data_to_prior:
            prior = self.prior_observed(self.data_layer.read_previous(previous), 4)
        return prior, self.data_layer.observe(previous)

    def prior_and_bijector(
        self, window: Array, offset: Array | None
    ) -> tuple[Prior, distrax.Bijector]:
        """p(ε_l | ·) and f_l for the window [..., k, *latent_shape] of codes."""
        config = self.config
        prior = self.prior(window if config.couple_prior else None, offset)
        return prior, self.bijector(window if config.couple_bijector else None)

    def infer(
        self, window: Array, inputs: tuple[Array | None, Array | None, Array, Array | None]
    ) -> tuple[Array, Latents]:
        """One step of inference.

        Args:
            window: the last codes [..., k, *latent_shape], newest last.
            inputs: `Observed.prior` and `posterior`; standard normal noise [..., *latent_shape];
                and a mask [*latent_shape], 0 at codes that this layer does not have, or None.

        Returns:
            The next window, and what the layer inferred.
        """
        prior_offset, offset, noise, mask = inputs
        prior, bijector = self.prior_and_bijector(window, prior_offset)
        residual = self.posterior(window if self.config.residual_sees_latents else None, offset)
        # Where the layer has no code, δμ = 0 and δσ = 1 make the KL vanish.
        residual = jax.tree.map(lambda parameter: masked(parameter, mask), residual)
        epsilon = masked(posterior_sample(prior, residual, noise), mask)
        z = masked(bijector.forward(epsilon), mask)
        prior = prior.broadcast_to(epsilon.shape)
        residual = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, epsilon.shape), residual)
        latents = Latents(epsilon=epsilon, z=z, prior=prior, residual=residual, bijector=bijector)
        return self._push_code(window, z), latents

    def decode(self, z: Array, offset: Any) -> Any:
        """Parameters γ_l of the data layer; without an offset γ¹(z) alone."""
        return self.data_layer(z if self.config.has_latents else None, offset)

    def evaluate(
        self, z: Array, offset: Any, block: Array, mask: Array | None
    ) -> tuple[Any, Array]:
        """Parameters γ_l, and log p(x_l | z_l, x_{l-1}) [...] in nats of a block."""
        parameters = self.decode(z, offset)
        return parameters, self.data_layer.block_log_prob(parameters, block, mask)

    def generate(
        self,
        carry: tuple[Array, Array],
        inputs: tuple[Array, Array, Array | None, Array | None],
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """One step of generation.

        Args:
            carry: windows of codes [B, k, *latent_shape] and of blocks [B, j, h, w, channels].
            inputs: noise [B, *latent_shape] of ε_l, keys [B] of x_l, mask [h, w, 1] of the block or
                None, mask [*latent_shape] of the codes or None.

        Returns:
            The next carry, and (block, its expectation).
        """
        window, previous = carry
        noise, keys, mask, code_mask = inputs
        prior_offset, data_offset = self.observe_previous(previous)
        prior, bijector = self.prior_and_bijector(window, prior_offset)
        z = masked(bijector.forward(masked(prior.sample(noise), code_mask)), code_mask)
        previous, blocks = self._emit(previous, self.decode(z, data_offset), keys, mask)
        return (self._push_code(window, z), previous), blocks

    def regenerate(
        self, previous: Array, inputs: tuple[Array, Array, Array | None], residual: bool
    ) -> tuple[Array, tuple[Array, Array]]:
        """One step of `generate` with the code z_l given; without `residual` γ¹(z_l) alone."""
        z, keys, mask = inputs
        data_offset = self.observe_previous(previous)[1] if residual else None
        return self._emit(previous, self.decode(z, data_offset), keys, mask)

    def _emit(
        self, previous: Array, parameters: Any, keys: Array, mask: Array | None
    ) -> tuple[Array, tuple[Array, Array]]:
        block = self.data_layer.sample_blocks(parameters, keys, mask)
        previous = _push(previous, block.astype(previous.dtype), event_ndims=3)
        return previous, (block, self.data_layer.expected_blocks(parameters, block))

    def _push_code(self, window: Array, z: Array) -> Array:
        return _push(window, z, event_ndims=len(self.config.latent_shape))


def _infer(layer: Layer, window: Array, inputs: tuple[Any, Any, Any]) -> tuple[Array, Latents]:
    """`Layer.infer` as a pure function, for the variables and keys of one layer and its inputs."""
    variables, rngs, of_layer = inputs
    stepped: Any = layer.apply(variables, window, of_layer, rngs=rngs, method=Layer.infer)
    return stepped[0], stepped[1]


def _push(window: Array, newest: Array, event_ndims: int) -> Array:
    """Drops the oldest entry of the window [..., k, *event] and appends the newest."""
    axis = window.ndim - event_ndims - 1
    kept = jax.lax.slice_in_dim(window, 1, None, axis=axis)
    return jnp.concatenate([kept, jnp.expand_dims(newest, axis)], axis=axis)


class Hierarchy(nn.Module):
    """L layers with stacked parameters (leading axis L), applied by `nn.scan` and `nn.vmap`.

    All its arrays but images have the layers as their first axis.
    """

    config: ModelConfig
    unroll: int = 1  # how many steps of a scan are one of the compiled loop; changes no result

    def setup(self) -> None:
        """Creates the one layer whose parameters are stacked."""
        self.partition = create_partition(self.config)
        self.layer = Layer(self.config, name="layers")
        if self.config.has_shared_encoder:
            depth = self.config.num_hidden_layers
            self.encoder = create_features(self.config, num_hidden_layers=depth)
            self.data_layer = create_data_layer(self.config, self.partition.block_shape)

    def observe(self, x: Shaped[Array, "*batch height width channels"]) -> Observed:
        """The blocks of x [L, B, ...], and features: of x, and of previous blocks."""
        blocks = self.partition.split(x)
        previous = previous_blocks(blocks, self.config.data_context)
        if self.config.has_shared_encoder:
            hidden = self.encoder(self.data_layer.to_network(x), 3)
            refine = self._one_after_another(Layer.refine, reverse=True)
            _, encodings = refine(self.layer, hidden, None)
        else:
            encodings = self._encode(x)
        observe = self._all_at_once(Layer.observe, (0, 0, 0))
        return observe(self.layer, encodings, previous, blocks)

    def _encode(self, x: Array) -> Any:
        if self.config.applies_layers_in_turn:
            return self._all_at_once(Layer.encode, (None,))(self.layer, x)
        # With an x for each layer, JAX transposes neither the first kernels nor their gradients.
        copies = jnp.broadcast_to(x, (self.config.num_layers, *x.shape))
        return self._all_at_once(Layer.encode, (0,))(self.layer, copies)

    def infer(self, observed: Observed, noise: Float[Array, "layers *rest"]) -> Latents:
        """The scan over layers, for standard normal noise [L, ..., B, *latent_shape].

        Further axes before B hold several samples of the codes of the same images.
        """
        window = self._no_codes(noise.shape[1 : noise.ndim - len(self.config.latent_shape)])
        inputs = (observed.prior, observed.posterior, noise, self.code_mask)
        if self._has_dear_launches and not (self.is_initializing() or self.config.rematerialize):
            step = functools.partial(_infer, Layer(self.config, parent=None))
            arguments = (self.layer.variables, self._rngs_of_layers(), inputs)
            _, latents = recurrence.scan(step, window, arguments)
            return latents
        _, latents = self._one_after_another(Layer.infer)(self.layer, window, inputs)
        return latents

    def _rngs_of_layers(self) -> dict[str, Array]:
        """Keys [L] of what the prior's networks drop; none where they drop nothing."""
        if not (self.config.generative_dropout and self.has_rng("dropout")):
            return {}
        return {"dropout": jax.random.split(self.make_rng("dropout"), self.config.num_layers)}

    def decode(self, z: Float[Array, "layers *rest"], observed: Observed) -> tuple[Any, Array]:
        """Data layers and likelihoods of all layers at once, for codes [L, ..., B, *latent_shape].

        Returns:
            Data parameters [L, ..., B, h, w, parameters a pixel], and log p(x_l | z_l, x_{l-1}) in
            nats [L, ..., B].
        """
        evaluate = self._all_at_once(Layer.evaluate, (0, 0, 0, 0))
        return evaluate(self.layer, z, observed.data, observed.block, self._mask)

    @property
    def _has_dear_launches(self) -> bool:
        """Whether a step takes as long as its kernels are many, so that few large ones are best."""
        return jax.default_backend() != "cpu"

    @property
    def _mask(self) -> Array | None:
        """[L, h, w, 1], 0 where blocks are padding; None: nowhere."""
        mask = self.partition.mask
        return None if mask.all() else jnp.asarray(mask)

    @property
    def code_mask(self) -> Array | None:
        """[L, N], 0 at codes that a layer does not have; None: they have all of them."""
        sizes = self.config.latent_sizes
        if not sizes:
            return None
        return jnp.arange(self.config.latent_shape[0]) < jnp.array(sizes)[:, None]

    def generate(self, noise: Noise, keys: Key[Array, "layers batch"]) -> tuple[Images, Images]:
        """Images and expected images [B, *data_shape]."""
        batch_shape = keys.shape[1:]
        carry = (self._no_codes(batch_shape), self._no_blocks(batch_shape))
        _, blocks = self._one_after_another(Layer.generate)(
            self.layer, carry, (noise, keys, self._mask, self.code_mask)
        )
        return jax.tree.map(self.partition.merge, blocks)

    def regenerate(
        self,
        z: Float[Array, "layers batch *latents"],
        keys: Key[Array, "layers batch"],
        residual: bool,
    ) -> tuple[Images, Images]:
        """Images and expected images [B, *data_shape] from codes."""
        step = functools.partial(Layer.regenerate, residual=residual)
        carry = self._no_blocks(keys.shape[1:])
        _, blocks = self._one_after_another(step)(self.layer, carry, (z, keys, self._mask))
        return jax.tree.map(self.partition.merge, blocks)

    def _no_codes(self, batch_shape: tuple[int, ...]) -> Array:
        return jnp.zeros((*batch_shape, self.config.context, *self.config.latent_shape))

    def _no_blocks(self, batch_shape: tuple[int, ...]) -> Array:
        return jnp.zeros((*batch_shape, self.config.data_context, *self.partition.block_shape))

    def _all_at_once(
        self, method: Callable[..., Any], in_axes: tuple[Any, ...]
    ) -> Callable[..., Any]:
        """Maps a method without a carry over the layers; None in `in_axes`: the same for all."""
        config = self.config
        if config.has_flows or (config.applies_layers_in_turn and not self._has_dear_launches):
            in_axes = tuple(nn.broadcast if axis is None else axis for axis in in_axes)

            def step(layer: Layer, carry: None, *arguments: Any) -> tuple[None, Any]:
                return carry, method(layer, *arguments)

            scanned = self._one_after_another(step, in_axes)
            return lambda layer, *arguments: scanned(layer, None, *arguments)[1]
        return nn.vmap(
            self._rematerialized(method),
            in_axes=in_axes,
            axis_size=self.config.num_layers,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
        )

    def _one_after_another(
        self, method: Callable[..., Any], in_axes: Any = 0, *, reverse: bool = False
    ) -> Callable[..., Any]:
        return nn.scan(
            self._rematerialized(method),
            length=self.config.num_layers,
            in_axes=in_axes,
            reverse=reverse,
            unroll=self.unroll,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
        )

    def _rematerialized(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return nn.remat(method, prevent_cse=False) if self.config.rematerialize else method
