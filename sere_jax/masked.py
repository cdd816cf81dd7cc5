"""Masked autoregressive networks (MADE; Germain et al. 2015), conditional and solved in one pass.

Every input and every hidden unit has a degree. A hidden unit of degree k sees the inputs of degrees
up to k; output d sees the hidden units of degrees below d. So output d depends on the inputs of
degrees below d, and on the condition, which is never masked: it is added to the first hidden layer
and to the outputs. Hidden units of degree 0 see nothing else: through them the first output, the
only one of 1-D data, depends on it nonlinearly too.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from sere_jax.mlp import head_initializer

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Degrees:
    """The order of the inputs and what each hidden unit may see.

    Attributes:
        inputs: [D], a permutation of 1 .. D: the place of each input in the order.
        hidden: of each hidden layer, the degrees of its units, each from 0 to D - 1.
    """

    inputs: tuple[int, ...]
    hidden: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        """Refuses what is no order or hides a unit from all outputs."""
        size = len(self.inputs)
        if sorted(self.inputs) != list(range(1, size + 1)):
            raise ValueError(f"inputs={self.inputs} is not a permutation of 1 to {size}")
        for layer in self.hidden:
            if not layer or min(layer) < 0 or max(layer) >= size:
                raise ValueError(f"hidden degrees {layer} must lie from 0 to {size - 1}")

    @property
    def order(self) -> np.ndarray:
        """[D], the index of the first, second, ... input of the order."""
        return np.argsort(self.inputs)

    def reversed(self) -> "Degrees":
        """The same hidden units, and the inputs in the opposite order."""
        last = len(self.inputs) + 1
        return dataclasses.replace(self, inputs=tuple(last - place for place in self.inputs))

    def units(self, layer: int) -> np.ndarray:
        """Hidden units by degree: [D, most of one degree] indices; the width of the layer pads."""
        degrees = np.asarray(self.hidden[layer])
        groups = [np.flatnonzero(degrees == degree) for degree in range(len(self.inputs))]
        table = np.full((len(groups), max(map(len, groups))), len(degrees))
        for row, group in zip(table, groups, strict=True):
            row[: len(group)] = group
        return table


def spread_degrees(
    num_inputs: int, widths: tuple[int, ...], *, conditional: bool, key: Array | None = None
) -> Degrees:
    """Degrees of hidden units, spread over all there are, in rising order or at random.

    Unlike degrees that count up and start again, rising ones reach D - 1 where a layer is narrower
    than the data, so that every input reaches the last output.

    Args:
        num_inputs: D.
        widths: units of each hidden layer.
        conditional: whether there is a condition, for which units of degree 0 are of use.
        key: draws the degrees instead; it must not be traced.
    """
    lowest = 0 if conditional or num_inputs == 1 else 1
    hidden = []
    for layer, width in enumerate(widths):
        if key is None:
            degrees = np.round(np.linspace(num_inputs - 1, lowest, width)).astype(int)[::-1]
        else:
            drawn = jax.random.randint(jax.random.fold_in(key, layer), (width,), lowest, num_inputs)
            degrees = np.asarray(drawn).copy()
            degrees[0] = lowest
        hidden.append(tuple(map(int, degrees)))
    return Degrees(tuple(range(1, num_inputs + 1)), tuple(hidden))


def masked(values: Array, mask: Array | None) -> Array:
    """values [..., D], but 0 where mask [D] is; None: nowhere."""
    return values if mask is None else jnp.where(mask > 0, values, 0.0)


@struct.dataclass
class MaskedNetwork:
    """A masked network with its weights: a function of x, and a pytree.

    `kernels` are unmasked; each product masks its own, so that it stays one dense product.
    """

    kernels: tuple[Array, ...]  # [D, width], [width, width], ..., [width, P, D]
    biases: tuple[Array, ...]  # [width], ..., [P, D]
    offset: Array | None  # [..., width], what the condition adds to the first hidden layer
    head_offset: Array | None  # [..., P, D], and to the outputs
    mask: Array | None  # [D], 0 where parameters are 0 whatever the weights; None: nowhere
    degrees: Degrees = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Parameters [..., P, D] of x [..., D]; column d depends on the inputs before d."""
        kernels = self._masked_kernels()
        hidden = x @ kernels[0] + self.biases[0]
        if self.offset is not None:
            hidden = hidden + self.offset
        for kernel, bias in zip(kernels[1:-1], self.biases[1:-1], strict=True):
            hidden = nn.relu(hidden) @ kernel + bias
        head = jnp.einsum("...h,hpd->...pd", nn.relu(hidden), kernels[-1]) + self._head_bias()
        return masked(head, self.mask)

    def solve(self, invert, u: Array) -> Array:
        """The x with x_d = invert(u_d, parameters_d(x)) for every input d, in one pass.

        Going through the inputs in order, each hidden unit is computed once, as soon as all that it
        sees is known, and each output column once: D steps cost about as much as one application
        of the network, not D of them.

        Args:
            invert: function of u_d [...] and parameters [..., P].
            u: [..., D].

        Returns:
            x [..., D].
        """
        kernels = self._masked_kernels()
        batch_shape = jnp.broadcast_shapes(u.shape[:-1], self._batch_shape())
        u = jnp.broadcast_to(u, (*batch_shape, u.shape[-1]))
        hidden = [
            jnp.broadcast_to(bias, (*batch_shape, bias.shape[-1])) for bias in self.biases[:-1]
        ]
        if self.offset is not None:
            hidden[0] = hidden[0] + self.offset
        num_hidden = len(hidden)
        known = jnp.zeros_like(hidden[-1])  # units of the last hidden layer, after the relu
        units = [jnp.asarray(self.degrees.units(layer)) for layer in range(num_hidden)]
        order = jnp.asarray(self.degrees.order)
        head_bias = self._head_bias()

        def step(place, carry):
            x, hidden, known = carry
            hidden = list(hidden)
            for layer in range(num_hidden):
                chosen = units[layer][place]
                values = nn.relu(jnp.take(hidden[layer], chosen, axis=-1, mode="clip"))
                values = jnp.where(chosen < hidden[layer].shape[-1], values, 0.0)
                if layer + 1 < num_hidden:
                    rows = jnp.take(kernels[layer + 1], chosen, axis=0, mode="clip")
                    hidden[layer + 1] = hidden[layer + 1] + values @ rows
                else:
                    known = known.at[..., chosen].set(values, mode="drop")
            index = order[place]
            column = jnp.take(kernels[-1], index, axis=-1)
            parameters = known @ column + jnp.take(head_bias, index, axis=-1)
            if self.mask is not None:
                parameters = jnp.where(jnp.take(self.mask, index) > 0, parameters, 0.0)
            value = invert(jnp.take(u, index, axis=-1), parameters)
            hidden[0] = hidden[0] + value[..., None] * kernels[0][index]
            return x.at[..., index].set(value), tuple(hidden), known

        x, _, _ = jax.lax.fori_loop(0, u.shape[-1], step, (jnp.zeros_like(u), tuple(hidden), known))
        return x

    def _batch_shape(self):
        return () if self.offset is None else self.offset.shape[:-1]

    def _head_bias(self):
        bias = self.biases[-1]
        return bias if self.head_offset is None else bias + self.head_offset

    def _masked_kernels(self):
        # Computed from the degrees where they are used; as constants they would fill the program.
        layers = [jnp.asarray(degrees) for degrees in (self.degrees.inputs, *self.degrees.hidden)]
        layers = jax.lax.optimization_barrier(layers)
        masks = [
            before[:, None] <= after for before, after in zip(layers, layers[1:], strict=False)
        ]
        masks.append((layers[-1][:, None] < layers[0])[:, None, :])
        return [
            jnp.where(mask, kernel, 0.0) for mask, kernel in zip(masks, self.kernels, strict=True)
        ]


class MADE(nn.Module):
    """Conditions, or none, to a `MaskedNetwork`.

    Attributes:
        degrees: order and hidden units.
        num_parameters: P, parameters of each input.
        head_scale: scale of the initial output weights.
    """

    degrees: Degrees
    num_parameters: int
    head_scale: float = 0.1

    @nn.compact
    def __call__(self, *conditions: Array | None, mask: Array | None = None) -> MaskedNetwork:
        """Joins the weights and the conditions.

        Args:
            *conditions: [..., features], whose batch shapes broadcast; None is left out.
            mask: [D], 0 where all parameters are 0; None: nowhere.
        """
        num_inputs = len(self.degrees.inputs)
        sizes = [num_inputs, *map(len, self.degrees.hidden)]
        kernels, biases = [], []
        for layer, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            kernels.append(
                self.param(f"kernel_{layer}", head_initializer(2**0.5), (fan_in, fan_out))
            )
            biases.append(self.param(f"bias_{layer}", nn.initializers.zeros_init(), (fan_out,)))
        shape = (self.num_parameters, num_inputs)
        head = self.param(
            "head_kernel", head_initializer(self.head_scale), (sizes[-1], num_inputs * shape[0])
        )
        kernels.append(head.reshape(sizes[-1], *shape))
        biases.append(self.param("head_bias", nn.initializers.zeros_init(), shape))
        given = [condition for condition in conditions if condition is not None]
        offset = head_offset = None
        if given:
            offset = self._project(given, sizes[1], 1.0, "condition")
            head_offset = self._project(given, math.prod(shape), self.head_scale, "head_condition")
            head_offset = head_offset.reshape(*head_offset.shape[:-1], *shape)
        return MaskedNetwork(tuple(kernels), tuple(biases), offset, head_offset, mask, self.degrees)

    def _project(self, conditions, size, scale, name):
        """Sum of affine maps of the conditions, so that none need be repeated to be joined."""
        terms = [
            nn.Dense(
                size,
                use_bias=False,
                kernel_init=head_initializer(scale / len(conditions) ** 0.5),
                name=f"{name}_{index}",
            )(condition)
            for index, condition in enumerate(conditions)
        ]
        return sum(terms[1:], terms[0])
