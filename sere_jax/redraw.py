"""Drawing missing pixels of a block anew, and the probabilities that a correction needs."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from sere_jax.arrays import Array
from sere_jax.pixels import DataLayer


class Redraw(NamedTuple):
    """Log-probabilities in nats of a block and of what is drawn in its place, [...] each."""

    whole: Array  # log p(x_l | γ)
    old: Array  # its part of the missing pixels
    new: Array  # the same of those that are drawn in their place


def redraw_missing(
    data_layer: DataLayer,
    parameters: Any,
    block: Array,
    missing: Array,
    keys: Array,
    mask: Array | None,
) -> tuple[Array, Redraw]:
    """A block [B, h, w, channels] with missing pixels drawn anew, as pixels are independent.

    Args:
        data_layer: whose pixels are independent given γ.
        parameters: γ of the block.
        block: x_l.
        missing: [h, w, 1], 1 at missing pixels; 0 at others and at padding.
        keys: [B].
        mask: [h, w, 1], 0 at padding; None: there is none.
    """
    drawn = data_layer.sample_blocks(parameters, keys, mask)
    drawn = jnp.where(missing > 0, drawn.astype(block.dtype), block)
    whole = data_layer.block_log_prob(parameters, block, mask)
    old = data_layer.block_log_prob(parameters, block, missing)
    return drawn, Redraw(whole, old, data_layer.block_log_prob(parameters, drawn, missing))
