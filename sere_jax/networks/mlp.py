"""Multilayer perceptrons, and networks without nonlinearities."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from sere_jax.arrays import Array, flatten
from sere_jax.config import ModelConfig
from sere_jax.networks.activations import elu, tanh
from sere_jax.networks.initializers import head_initializer
from sere_jax.networks.products import Dense


class MLPFeatures(nn.Module):
    """An image, or a window of blocks, to what an `MLPNetwork` adds to a hidden layer.

    A condition joins in the first layer, by an affine map of its own that maps zeros to zeros.
    """

    config: ModelConfig
    num_hidden_layers: int  # hidden layers before that one
    dropout: float = 0.0  # share of hidden units dropped, if larger than `config.dropout`

    @nn.compact
    def __call__(
        self, inputs: Array, event_ndims: int, condition: Array | None = None
    ) -> Float[Array, "*batch hidden"]:
        """inputs [..., *event] with `event_ndims` axes in the event, to [..., hidden_size].

        The condition is [..., C] or None.
        Hidden units are dropped (Srivastava et al. 2014) where there are keys called `dropout`.
        """
        size = self.config.hidden_size
        hidden = plus_condition(Dense(size)(flatten(inputs, event_ndims)), condition)
        share = max(self.config.dropout, self.dropout)
        dropout = nn.Dropout(share, deterministic=not self.has_rng("dropout"))
        for _ in range(self.num_hidden_layers):
            hidden = Dense(size)(dropout(elu(hidden)))
        return hidden


def plus_condition(hidden: Array, condition: Array | None, position_ndims: int = 0) -> Array:
    """Inside a module: adds a linear map of a condition [..., C] to hidden [..., size].

    The hidden layer has `position_ndims` axes of positions before the last, the condition none.
    """
    if condition is None:
        return hidden
    added = Dense(hidden.shape[-1], use_bias=False, name="condition")(condition)
    return hidden + jnp.expand_dims(added, tuple(range(-1 - position_ndims, -1)))


class MLPRefinement(nn.Module):
    """One step of an encoder that is shared by all layers, from the last layer to the first."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: Array) -> tuple[Array, Array]:
        """Features [..., hidden_size] to those of the layer before, and the offset of this one."""
        hidden = self._refine(hidden)
        return hidden, Dense(self.config.hidden_size, name="offset")(hidden)

    def _refine(self, hidden: Array) -> Array:
        return hidden + Dense(self.config.hidden_size, name="refine")(elu(hidden))


class MLPNetwork(nn.Module):
    """Codes, an offset, or both, to the parameters of a layer."""

    config: ModelConfig
    output_shape: tuple[int, ...]  # event shape of the result
    head_scale: float = 1.0  # scale of the initial output weights
    # Whether the codes pass through a tanh first. In the recurrence z_{l-1} -> z_l it bounds
    # what a large code can do to the next one, which keeps it from diverging.
    bounded: bool = True
    # What the last axis of the result starts near, or one value for all of it.
    output_start: tuple[float, ...] = (0.0,)
    num_joint_layers: int = 0  # residual hidden layers after the sum of codes and offset; of `mlp`
    # Share of hidden units that `mlp` drops where there are keys called `dropout`.
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        codes: Array | None,
        event_ndims: int,
        offset: Array | None,
        condition: Array | None = None,
    ) -> Array:
        """[..., *output_shape]; without inputs, learned constants of that shape without a batch.

        Args:
            codes: [..., *event], or None: the layer does not see any.
            event_ndims: axes of the event: those of `latent_shape`, one more for a window of codes.
            offset: from the features module of the family, added to a hidden layer, or None.
            condition: [..., hidden_size], of `create_condition`, added there too, or None.
        """
        if codes is None and offset is None and condition is None:
            return self.param("constant", self._start, self.output_shape)
        terms = [] if offset is None else [offset]
        if condition is not None:
            terms.append(self._at_positions(condition))
        if codes is not None:
            terms.append(self._hidden(codes, event_ndims, use_bias=offset is None))
        hidden = self._last_hidden(sum(terms[1:], terms[0]))
        position_ndims = self._position_ndims()
        size = math.prod(self.output_shape[position_ndims:])
        kernel_init = head_initializer(self.head_scale)
        head = nn.Dense(size, kernel_init=kernel_init, bias_init=self._start, name="head")(hidden)
        batch_shape = head.shape[: head.ndim - 1 - position_ndims]
        return head.reshape(*batch_shape, *self.output_shape)

    def _start(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        del key
        repeats = math.prod(shape) // len(self.output_start)
        return jnp.tile(jnp.array(self.output_start, dtype), repeats).reshape(shape)

    def _position_ndims(self) -> int:
        """Number of axes of hidden layers, besides the last, that the output has too."""
        return 0

    def _at_positions(self, condition: Array) -> Array:
        """[..., hidden_size] at each position of the hidden layers."""
        *batch_shape, size = condition.shape
        positions = self.output_shape[: self._position_ndims()]
        condition = jnp.expand_dims(condition, tuple(range(-1 - len(positions), -1)))
        return jnp.broadcast_to(condition, (*batch_shape, *positions, size))

    def _last_hidden(self, hidden: Array) -> Array:
        """The last hidden layer from the sum of offset and codes."""
        hidden = self._drop(elu(hidden))
        for layer in range(self.num_joint_layers):
            joint = Dense(
                self.config.hidden_size, kernel_init=head_initializer(0.5), name=f"joint_{layer}"
            )
            hidden = self._drop(elu(hidden + joint(hidden)))
        return hidden

    def _hidden(self, codes: Array, event_ndims: int, use_bias: bool) -> Array:
        """The hidden layer of the codes that the offset is added to, before its activation."""
        size = self.config.hidden_size
        hidden = Dense(size)(flatten(codes, event_ndims))
        hidden = self._drop(tanh(hidden) if self.bounded else elu(hidden))
        for _ in range(self.config.num_hidden_layers - 2):
            hidden = self._drop(elu(Dense(size)(hidden)))
        return Dense(size, use_bias=use_bias)(hidden)

    def _drop(self, hidden: Array) -> Array:
        if not self.dropout:
            return hidden
        return nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(hidden)


class LinearFeatures(nn.Module):
    """`MLPFeatures` without hidden layers: one affine map of the image."""

    config: ModelConfig
    num_hidden_layers: int = 0  # ignored

    @nn.compact
    def __call__(
        self, inputs: Array, event_ndims: int, condition: Array | None = None
    ) -> Float[Array, "*batch hidden"]:
        """inputs [..., *event] with `event_ndims` axes in the event, to [..., hidden_size]."""
        hidden = Dense(self.config.hidden_size)(flatten(inputs, event_ndims))
        return plus_condition(hidden, condition)


class LinearRefinement(MLPRefinement):
    """`MLPRefinement` without nonlinearities."""

    def _refine(self, hidden: Array) -> Array:
        return hidden + Dense(self.config.hidden_size, name="refine")(hidden)


class LinearNetwork(MLPNetwork):
    """`MLPNetwork` without nonlinearities: parameters are affine in codes and image.

    Its rank is bounded by `hidden_size`. Means are affine; where scales do not depend on the inputs
    either, the model is a linear Gaussian one, whose likelihood and posterior are known exactly.
    """

    def _last_hidden(self, hidden: Array) -> Array:
        return hidden

    def _hidden(self, codes: Array, event_ndims: int, use_bias: bool) -> Array:
        codes = flatten(codes, event_ndims)
        return Dense(self.config.hidden_size, use_bias=use_bias)(codes)
