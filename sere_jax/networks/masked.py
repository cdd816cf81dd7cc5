"""Masked autoregressive networks (MADE; Germain et al. 2015), conditional and solved in one pass.

Every input and every hidden unit has a degree. A hidden unit of degree k sees the inputs of degrees
up to k; output d sees the hidden units of degrees below d. So output d depends on the inputs of
degrees below d, and on the condition, which is never masked: it is added to the first hidden layer
and to the outputs. Hidden units of degree 0 see nothing else: through them the first output, the
only one of 1-D data, depends on it nonlinearly too. Direct connections (section 4.2 there) are an
option: each output then also depends linearly on the inputs that it may see.

Kernels are kept in stripes; see `sere_jax.networks.stripes`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Shaped

from sere_jax.arrays import Array, masked, record, static
from sere_jax.networks.initializers import head_initializer
from sere_jax.networks.products import Dense
from sere_jax.networks.stripes import MaskedKernel, cut_stripes


@dataclasses.dataclass(frozen=True)
class Degrees:
    """The order of the inputs and what each hidden unit may see."""

    inputs: tuple[int, ...]  # [D], a permutation of 1 .. D: the place of each input in the order
    # Of each hidden layer, the degrees of its units, rising from 0 to D - 1.
    hidden: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Refuses what is no order or hides a unit from all outputs."""
        size = len(self.inputs)
        if sorted(self.inputs) != list(range(1, size + 1)):
            raise ValueError(f"inputs={self.inputs} is not a permutation of 1 to {size}")
        for layer in self.hidden:
            if not layer or min(layer) < 0 or max(layer) >= size:
                raise ValueError(f"hidden degrees {layer} must lie from 0 to {size - 1}")
            if list(layer) != sorted(layer):
                raise ValueError(f"hidden degrees {layer} must rise; another order gains nothing")

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


def spread_degrees(num_inputs: int, widths: tuple[int, ...], *, conditional: bool) -> Degrees:
    """Degrees of hidden units of layers of `widths`, spread over all there are, in rising order.

    Unlike degrees that count up and start again, rising ones reach D - 1 where a layer is narrower
    than the data, so that every input reaches the last output. With a condition, units of degree 0
    are of use.
    """
    lowest = 0 if conditional or num_inputs == 1 else 1
    hidden = []
    for width in widths:
        degrees = np.round(np.linspace(num_inputs - 1, lowest, width)).astype(int)[::-1]
        hidden.append(tuple(map(int, degrees)))
    return Degrees(tuple(range(1, num_inputs + 1)), tuple(hidden))


@record
class MaskedNetwork:
    """A masked network with its weights: a function of x, and a pytree.

    Its products have a gradient of their own, so that `jax.jacfwd` and `jax.jvp` refuse it;
    `jax.jacobian` and `jax.grad` do not.
    """

    kernels: tuple[MaskedKernel, ...]  # D to width, width to width, ..., width to [P, D]
    biases: tuple[Array, ...]  # [width], ..., [P, D]
    offset: Float[Array, "*batch width"] | None  # what the condition adds to the first hidden layer
    head_offset: Float[Array, "*batch P D"] | None  # and to the outputs
    mask: Shaped[Array, " D"] | None  # 0 where parameters are 0 whatever the weights
    degrees: Degrees = static()
    direct: MaskedKernel | None = None  # D to [P, D] beside the hidden layers

    def __call__(self, x: Float[Array, "*#batch D"]) -> Float[Array, "*#batch P D"]:
        """Parameters of x; column d depends on the inputs before d."""
        x = _permute(x, self.degrees.order)
        hidden = self.kernels[0](x) + self.biases[0]
        if self.offset is not None:
            hidden = hidden + self.offset
        for kernel, bias in zip(self.kernels[1:-1], self.biases[1:-1], strict=True):
            hidden = kernel(nn.relu(hidden)) + bias
        head = self.kernels[-1](nn.relu(hidden), is_head=True)
        if self.direct is not None:
            head = head + self.direct(x, is_head=True)
        head = _permute(head, np.asarray(self.degrees.inputs) - 1) + self._head_bias()
        return masked(head, self.mask)

    def solve(
        self, invert: Callable[[Array, Array], Array], u: Float[Array, "*#batch D"]
    ) -> Float[Array, "*#batch D"]:
        """The x with x_d = invert(u_d, parameters_d(x)) for every input d, in one pass.

        Going through the inputs in order, each hidden unit is computed once, as soon as all that it
        sees is known, and each output column once: D steps cost about as much as one application
        of the network, not D of them. `invert` is a function of u_d [...] and parameters [..., P].
        """
        sizes = [u.shape[-1], *map(len, self.degrees.hidden)]
        *kernels, head = (
            kernel.full(size) for kernel, size in zip(self.kernels, sizes, strict=True)
        )
        of_condition = () if self.offset is None else self.offset.shape[:-1]
        batch_shape = jnp.broadcast_shapes(u.shape[:-1], of_condition)
        u = jnp.broadcast_to(u, (*batch_shape, u.shape[-1]))
        hidden = [
            jnp.broadcast_to(bias, (*batch_shape, bias.shape[-1])) for bias in self.biases[:-1]
        ]
        if self.offset is not None:
            hidden[0] = hidden[0] + self.offset
        num_hidden = len(hidden)
        # What outputs see: the inputs if they are connected, and units of the last hidden layer.
        first = 0 if self.direct is None else sizes[0]
        known = jnp.zeros((*batch_shape, first + sizes[-1]), hidden[-1].dtype)
        if self.direct is not None:
            head = jnp.concatenate([self.direct.full(sizes[0]), head])
        units = [jnp.asarray(self.degrees.units(layer)) for layer in range(num_hidden)]
        order = jnp.asarray(self.degrees.order)
        head_bias = masked(self._head_bias(), self.mask)
        mask_in_order = None if self.mask is None else jnp.take(self.mask, order)
        columns = masked(head, mask_in_order).swapaxes(0, -1)  # [D, P, first + width]

        def step(place: Array, carry: Any) -> Any:
            x, (*hidden,), known = carry
            for layer in range(num_hidden):
                chosen = units[layer][place]
                values = nn.relu(jnp.take(hidden[layer], chosen, axis=-1, mode="clip"))
                values = jnp.where(chosen < hidden[layer].shape[-1], values, 0.0)
                if layer + 1 < num_hidden:
                    rows = jnp.take(kernels[layer + 1], chosen, axis=0, mode="clip")
                    hidden[layer + 1] = hidden[layer + 1] + values @ rows
                else:
                    known = known.at[..., first + chosen].set(values, mode="drop")
            index = order[place]
            parameters = known @ columns[place].T + jnp.take(head_bias, index, axis=-1)
            value = invert(jnp.take(u, index, axis=-1), parameters)
            hidden[0] = hidden[0] + value[..., None] * kernels[0][place]
            if self.direct is not None:
                known = known.at[..., place].set(value)
            return x.at[..., index].set(value), tuple(hidden), known

        x, _, _ = jax.lax.fori_loop(0, u.shape[-1], step, (jnp.zeros_like(u), tuple(hidden), known))
        return x

    def _head_bias(self) -> Array:
        bias = self.biases[-1]
        return bias if self.head_offset is None else bias + self.head_offset


def _permute(values: Array, order: np.ndarray) -> Array:
    """values[..., order], cheaply where the order is the natural one or its opposite."""
    natural = np.arange(len(order))
    if np.array_equal(order, natural):
        return values
    return values[..., ::-1] if np.array_equal(order, natural[::-1]) else values[..., order]


class MADE(nn.Module):
    """Conditions, or none, to a `MaskedNetwork`."""

    degrees: Degrees  # order and hidden units
    num_parameters: int  # P, parameters of each input
    head_scale: float = 0.1  # scale of the initial output weights
    stripe_size: int = 128  # least width of the stripes that kernels are cut into
    direct: bool = False  # whether there are direct connections; they start at 0

    @nn.compact
    def __call__(self, *conditions: Array | None, mask: Array | None = None) -> MaskedNetwork:
        """Joins the weights and the conditions [..., features]; None is left out.

        The mask [D] is 0 where all parameters are 0; None: nowhere.
        """
        num_inputs = len(self.degrees.inputs)
        shape = (self.num_parameters, num_inputs)
        zeros = nn.initializers.zeros_init()
        kernels, biases = [], []
        degrees = [np.sort(self.degrees.inputs), *map(np.asarray, self.degrees.hidden)]
        for layer, (before, after) in enumerate(itertools.pairwise(degrees)):
            num_seen = np.searchsorted(before, after, side="right")
            kernels.append(self._kernel(f"kernel_{layer}", num_seen, (len(after),), 2**0.5))
            biases.append(self.param(f"bias_{layer}", zeros, (len(after),)))
        num_seen = np.searchsorted(degrees[-1], degrees[0], side="left")
        kernels.append(self._kernel("head_kernel", num_seen, shape, self.head_scale))
        biases.append(self.param("head_bias", zeros, shape))
        given = [condition for condition in conditions if condition is not None]
        offset = head_offset = None
        if given:
            offset = self._project(Dense, given, len(degrees[1]), 1.0, "condition")
            head_offset = self._project(
                nn.Dense, given, math.prod(shape), self.head_scale, "head_condition"
            )
            head_offset = head_offset.reshape(*head_offset.shape[:-1], *shape)
        direct = None
        if self.direct:
            direct = self._kernel("direct_kernel", np.arange(num_inputs), shape, 0.0)
        return MaskedNetwork(
            tuple(kernels), tuple(biases), offset, head_offset, mask, self.degrees, direct
        )

    def _kernel(
        self, name: str, num_seen: np.ndarray, shape: tuple[int, ...], scale: float
    ) -> MaskedKernel:
        """The stripes of a kernel to outputs of `shape`, of which the last axis rises in degree."""
        stripes = cut_stripes(num_seen, self.stripe_size)
        parts: tuple[list[Array], list[Array]] = ([], [])
        for index, stripe in enumerate(stripes):
            initializer = nn.initializers.truncated_normal(scale / max(stripe.num_seen, 1) ** 0.5)
            sizes = (stripe.num_dense, stripe.num_seen - stripe.num_dense)
            for part, kernels, size in zip(("dense", "staircase"), parts, sizes, strict=True):
                rows = (size, *shape[:-1], stripe.stop - stripe.start)
                kernels.append(
                    self.param(f"{name}_{part}_{index}", initializer, rows)
                    if size
                    else jnp.zeros(rows)
                )
        dense, staircase = map(tuple, parts)
        return MaskedKernel(dense, staircase, tuple(map(int, num_seen)), stripes)

    def _project(
        self, affine: Any, conditions: list[Array], size: int, scale: float, name: str
    ) -> Array:
        """Sum of affine maps of the conditions, so that none need be repeated to be joined."""
        terms = [
            affine(
                size,
                use_bias=False,
                kernel_init=head_initializer(scale / len(conditions) ** 0.5),
                name=f"{name}_{index}",
            )(condition)
            for index, condition in enumerate(conditions)
        ]
        return sum(terms[1:], terms[0])
