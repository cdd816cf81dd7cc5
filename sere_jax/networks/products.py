"""Matrix products of networks, in the precision that JAX is set to.

`jax.default_matmul_precision` says it, as for JAX's own products, and `sere_jax.objective` sets it.
With "bfloat16" the inputs of products are rounded to bfloat16, forward and backward, and sums are
float32, on every device; JAX itself does so on TPUs alone. Heads, the last affine maps of networks,
and other products are JAX's own.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint

from sere_jax.arrays import Array
from sere_jax.rules import BFLOAT16


def current_precision(*, is_head: bool = False) -> str | None:
    """What `jax.default_matmul_precision` is; None: the default of the device.

    Of heads it is never "bfloat16".
    """
    settings: Any = jax.config  # its stubs know few of its fields
    precision: str | None = settings.jax_default_matmul_precision
    return None if is_head and precision == BFLOAT16 else precision


def rounded(values: Array, precision: str | None) -> Array:
    """What products of this precision take of float32 values."""
    return values.astype(jnp.bfloat16) if precision == BFLOAT16 else values


def matmul(x: Array, kernel: Array) -> Array:
    """x [..., inputs] and kernel [inputs, outputs] to [..., outputs], float32."""
    precision = current_precision()
    return product(x, kernel, precision) if precision == BFLOAT16 else x @ kernel


def _dot_general(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    precision = current_precision()
    if precision == BFLOAT16:
        return product(x, kernel, precision)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options)


# Affine maps of hidden layers; `nn.Dense` is for heads.
Dense = functools.partial(nn.Dense, dot_general=_dot_general)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, kernel: Array, precision: str | None) -> Array:
    """x [..., inputs] and kernel [inputs, *outputs] to [..., *outputs], float32."""
    return _forward(x, kernel, precision)[0]


def _forward(x: Array, kernel: Array, precision: str | None) -> tuple[Array, tuple[Array, Array]]:
    x, kernel = rounded(x, precision), rounded(kernel, precision)
    return contract(x, kernel, 1, precision), (x, kernel)


def _backward(
    precision: str | None, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    cotangent = rounded(cotangent, precision)
    by_kernel = gradient_of_kernel(x, cotangent, kernel.shape[1:], precision)
    outputs = tuple(range(1, kernel.ndim))
    axes = (tuple(i - kernel.ndim for i in outputs), outputs)
    return contract(cotangent, kernel, axes, precision), by_kernel


def gradient_of_kernel(
    x: Array, cotangent: Array, outputs: tuple[int, ...], precision: str | None
) -> Array:
    """[inputs, *outputs] of rounded x [..., inputs] and cotangent [..., *outputs]."""
    # In this order the gradient has the kernel's layout; JAX's own rule has to transpose it.
    num = math.prod(x.shape[:-1])  # not -1, as there may be no inputs
    x, cotangent = x.reshape(num, x.shape[-1]), cotangent.reshape(num, *outputs)
    if precision != BFLOAT16:
        return contract(x, cotangent, ((0,), (0,)), precision)
    # XLA on CPUs multiplies bfloat16 only where both arrays lie in memory in the order of their
    # axes; it converts a transposed one to float32. Elsewhere a transposition needs no copy.
    on_cpu = jax.default_backend() == "cpu"
    inputs_first = with_layout_constraint(x.T, Layout((0, 1))) if on_cpu else x.T
    return contract(inputs_first, cotangent, 1, precision)


def contract(
    one: Array, other: Array, axes: int | Sequence[Sequence[int]], precision: str | None
) -> Array:
    """`jnp.tensordot` of rounded arrays, with float32 sums."""
    # The backward pass is traced where the precision may be another, so it is handed on.
    sums = jnp.result_type(one, other, jnp.float32)
    return jnp.tensordot(one, other, axes, precision=precision, preferred_element_type=sums)


product.defvjp(_forward, _backward)
