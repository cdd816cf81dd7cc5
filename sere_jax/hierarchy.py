"""The hierarchy: one layer module, scanned over L stacked copies of its parameters.

Three phases, so that only what is sequential is scanned (paper, Figure 1 and Eqs. 2-7):

    observe   what depends on x alone, for all layers at once (encoders, previous blocks); or, with
              a shared encoder, from layer L to 1 (encoder)
    infer     z_{l-1} -> z_l, the scan over layers
    decode    the data layers and their likelihoods given all codes, for all layers at once

`generate` scans prior, bijector and data layer together, as each block needs the one before. What
the image, its blocks or a condition contribute to a layer is an offset of one of its hidden layers
(`sere_jax.networks.family`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Key, Shaped

from sere_jax import recurrence
from sere_jax.arrays import Array, Images, Noise
from sere_jax.config import ModelConfig
from sere_jax.data_layer import create_data_layer
from sere_jax.layer import GivenCode, Latents, Layer, Observed, infer_step
from sere_jax.networks.family import create_features
from sere_jax.partition import blocks_around, create_partition, previous_blocks
from sere_jax.redraw import Redraw
from sere_jax.top_down import state_shape


class Hierarchy(nn.Module):
    """L layers with stacked parameters (leading axis L), applied by `nn.scan` and `nn.vmap`.

    All its arrays but images have the layers as their first axis.
    """

    config: ModelConfig
    unroll: int = 1  # steps of a scan in one of the compiled loop; changes no result (benchmarks)

    def setup(self) -> None:
        """Creates the one layer whose parameters are stacked."""
        self.partition = create_partition(self.config)
        self.layer = Layer(self.config, name="layers")
        if self.config.has_shared_encoder:
            depth = self.config.num_hidden_layers
            self.encoder = create_features(self.config, num_hidden_layers=depth)
            self.data_layer = create_data_layer(self.config, self.partition.block_shape)

    def observe(
        self, x: Shaped[Array, "*batch height width channels"], condition: Array | None = None
    ) -> Observed:
        """The blocks of x [L, B, ...], and features: of x, previous blocks, a condition [B, C]."""
        blocks = self.partition.split(x)
        previous = previous_blocks(blocks, self.config.data_context)
        if self.config.has_shared_encoder:
            hidden = self.encoder(self.data_layer.to_network(x), 3, condition)
            refine = self._one_after_another(Layer.refine, reverse=True)
            _, encodings = refine(self.layer, hidden, None)
        elif self.config.encoder == "local":
            encode = self._all_at_once(Layer.encode, (0, None))
            encodings = encode(self.layer, blocks_around(blocks), condition)
        else:
            encodings = self._encode(x, condition)
        observe = self._all_at_once(Layer.observe, (0, 0, 0, None))
        return observe(self.layer, encodings, previous, blocks, condition)

    def _encode(self, x: Array, condition: Array | None) -> Any:
        if self.config.applies_layers_in_turn:
            return self._all_at_once(Layer.encode, (None, None))(self.layer, x, condition)
        # With an x for each layer, JAX transposes neither the first kernels nor their gradients.
        copies = jnp.broadcast_to(x, (self.config.num_layers, *x.shape))
        return self._all_at_once(Layer.encode, (0, None))(self.layer, copies, condition)

    def infer(self, observed: Observed, noise: Float[Array, "layers *rest"]) -> Latents:
        """The scan over layers, for standard normal noise [L, ..., B, *latent_shape].

        Further axes before B hold several samples of the codes of the same images.
        """
        window = self._no_codes(noise.shape[1 : noise.ndim - len(self.config.latent_shape)])
        inputs = (observed.prior, observed.posterior, noise, self.code_mask, observed.condition)
        if self._is_launch_bound and not (self.is_initializing() or self.config.rematerialize):
            step = functools.partial(infer_step, Layer(self.config, parent=None))
            arguments = (self.layer.variables, self._rngs_of_layers(), inputs)
            _, latents = recurrence.scan(step, window, arguments)
            return latents
        _, latents = self._one_after_another(Layer.infer)(self.layer, window, inputs)
        return latents

    def follow(self, observed: Observed, epsilon: Float[Array, "layers batch *latents"]) -> Latents:
        """`infer` with ε given, not drawn."""
        inputs = (observed.prior, observed.posterior, epsilon, self.code_mask, observed.condition)
        step = functools.partial(Layer.infer, is_given=True)
        window = self._no_codes(epsilon.shape[1:2])
        return self._one_after_another(step)(self.layer, window, inputs)[1]

    def _rngs_of_layers(self) -> dict[str, Array]:
        """Keys [L] of what the prior's networks drop; none where they drop nothing."""
        if not (self.config.generative_dropout and self.has_rng("dropout")):
            return {}
        return {"dropout": jax.random.split(self.make_rng("dropout"), self.config.num_layers)}

    def decode(self, codes: Float[Array, "layers *rest"], observed: Observed) -> tuple[Any, Array]:
        """Data layers and likelihoods of all layers at once, for `Latents.codes`.

        Returns:
            Data parameters [L, ..., B, h, w, parameters a pixel], and log p(x_l | z_l, x_{l-1}) in
            nats [L, ..., B].
        """
        evaluate = self._all_at_once(Layer.evaluate, (0, 0, 0, 0))
        return evaluate(self.layer, codes, observed.data, observed.block, self._mask)

    def redraw(
        self,
        codes: Float[Array, "layers batch *latents"],
        observed: Observed,
        missing: Float[Array, "height width channels"],
        keys: Key[Array, "layers batch"],
    ) -> tuple[Images, Redraw]:
        """Images with the missing pixels of each block drawn anew, the blocks before as they are.

        The log-probabilities are [L, B].
        """
        of_blocks = self.partition.split(missing)[..., :1]
        redraw = self._all_at_once(Layer.redraw, (0, 0, 0, 0, 0, 0))
        arguments = (codes, observed.data, observed.block, of_blocks, keys, self._mask)
        blocks, log_prob = redraw(self.layer, *arguments)
        return self.partition.merge(blocks), log_prob

    @property
    def _is_launch_bound(self) -> bool:
        """Whether launches, not arithmetic, limit a step, so that few large kernels are best."""
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

    def generate(
        self,
        noise: Noise,
        keys: Key[Array, "layers batch"],
        condition: Array | None = None,
        given: GivenCode | None = None,
    ) -> tuple[Images, Images]:
        """Images and expected images [B, *data_shape], for a condition [B, C]."""
        batch_shape = keys.shape[1:]
        carry = (self._no_codes(batch_shape), self._no_blocks(batch_shape))
        _, blocks = self._one_after_another(Layer.generate, (0, nn.broadcast))(
            self.layer, carry, (noise, keys, self._mask, self.code_mask, given), condition
        )
        return jax.tree.map(self.partition.merge, blocks)

    def regenerate(
        self,
        z: Float[Array, "layers batch *latents"],
        keys: Key[Array, "layers batch"],
        residual: bool,
        condition: Array | None = None,
    ) -> tuple[Images, Images]:
        """Images and expected images [B, *data_shape] from codes."""
        step = functools.partial(Layer.regenerate, residual=residual)
        carry = (self._no_codes(keys.shape[1:]), self._no_blocks(keys.shape[1:]))
        _, blocks = self._one_after_another(step, (0, nn.broadcast))(
            self.layer, carry, (z, keys, self._mask), condition
        )
        return jax.tree.map(self.partition.merge, blocks)

    def _no_codes(self, batch_shape: tuple[int, ...]) -> Array:
        config = self.config
        shape = state_shape(config) if config.state_size else config.latent_shape
        return jnp.zeros((*batch_shape, config.context, *shape))

    def _no_blocks(self, batch_shape: tuple[int, ...]) -> Array:
        return jnp.zeros((*batch_shape, self.config.data_context, *self.partition.block_shape))

    def _all_at_once(
        self, method: Callable[..., Any], in_axes: tuple[Any, ...]
    ) -> Callable[..., Any]:
        """Maps a method without a carry over the layers; None in `in_axes`: the same for all.

        By `nn.vmap`; flows, and residual networks on CPUs, are faster by `nn.scan`.
        """
        config = self.config
        if config.has_flows or (config.applies_layers_in_turn and not self._is_launch_bound):
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
