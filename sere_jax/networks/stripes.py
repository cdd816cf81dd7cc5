"""Masked kernels whose mask is a staircase, as it is with units in the order of their degrees.

A kernel is kept as a few stripes of outputs: of each, the rows that all of its outputs see, as one
dense matrix, and those that some of them see, masked. What none of them sees, nearly half of the
kernel, is neither kept, nor multiplied, nor optimized.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.arrays import Array, record, static
from sere_jax.networks.products import current_precision, product

MAX_STRIPES = 4  # of a masked kernel; more of them gain little


@dataclasses.dataclass(frozen=True)
class Stripe:
    """Some outputs of a masked layer, whose units are in the order of their degrees.

    Attributes:
        start, stop: which outputs.
        num_dense: how many of the first inputs all of them see.
        num_seen: how many of the first inputs the last of them sees.
    """

    start: int
    stop: int
    num_dense: int
    num_seen: int


def cut_stripes(num_seen: np.ndarray, stripe_size: int) -> tuple[Stripe, ...]:
    """At most `MAX_STRIPES` stripes of about equal width, at least `stripe_size` if they can be.

    `num_seen` [outputs] says, rising, how many of the first inputs each output sees.
    """
    num_stripes = min(max(1, len(num_seen) // stripe_size), MAX_STRIPES)
    borders = np.linspace(0, len(num_seen), num_stripes + 1).round().astype(int)
    return tuple(
        Stripe(int(start), int(stop), int(num_seen[start]), int(num_seen[stop - 1]))
        for start, stop in itertools.pairwise(borders)
    )


@record
class MaskedKernel:
    """The stripes of a masked kernel; a stripe that sees no input at all has empty parts."""

    dense: tuple[Array, ...]  # of each stripe [num_dense, *outputs]
    staircase: tuple[Array, ...]  # of each stripe [num_seen - num_dense, *outputs], unmasked
    num_seen: tuple[int, ...] = static()  # [outputs]
    stripes: tuple[Stripe, ...] = static()

    def __call__(self, x: Array, *, is_head: bool = False) -> Array:
        """x [..., inputs] to [..., *outputs], a product of each part."""
        precision = current_precision(is_head=is_head)
        products = []
        for stripe, dense, staircase in zip(
            self.stripes, self.dense, self._masked_staircases(), strict=True
        ):
            parts = ((dense, 0, stripe.num_dense), (staircase, stripe.num_dense, stripe.num_seen))
            total = jnp.zeros(dense.shape[1:])
            for kernel, first, last in parts:
                if first < last:
                    total = total + product(x[..., first:last], kernel, precision)
            products.append(jnp.broadcast_to(total, (*x.shape[:-1], *dense.shape[1:])))
        return jnp.concatenate(products, axis=-1)

    def full(self, num_inputs: int) -> Array:
        """The masked kernel as one matrix [inputs, *outputs]."""
        columns = []
        for dense, staircase in zip(self.dense, self._masked_staircases(), strict=True):
            seen = jnp.concatenate([dense, staircase])
            missing = num_inputs - len(seen)
            columns.append(jnp.pad(seen, [(0, missing)] + [(0, 0)] * (seen.ndim - 1)))
        return jnp.concatenate(columns, axis=-1)

    def _masked_staircases(self) -> Iterator[Array]:
        # Computed from the counts where they are used; as constants they would fill the program.
        num_seen = jax.lax.optimization_barrier(jnp.asarray(self.num_seen))
        for stripe, staircase in zip(self.stripes, self.staircase, strict=True):
            row = stripe.num_dense + jnp.arange(len(staircase))
            mask = row[:, None] < num_seen[stripe.start : stripe.stop]
            mask = jnp.expand_dims(mask, tuple(range(1, staircase.ndim - 1)))
            yield jnp.where(mask, staircase, 0.0)
