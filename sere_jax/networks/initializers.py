"""Initial weights."""

from flax import linen as nn


def head_initializer(scale: float) -> nn.initializers.Initializer:
    """Kernel initializer of an output layer, `scale` times the usual deviation; 0 gives zeros."""
    if scale == 0:
        return nn.initializers.zeros_init()
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
