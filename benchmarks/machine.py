"""What the machine can do: its rate at products of matrices, and its bandwidth."""

import jax
import jax.numpy as jnp

from benchmarks import production
from benchmarks.harness import Benchmark, Step, rate


def matmul(quick: bool) -> Step:
    """GFLOP/s of a product of two float32 matrices of 2048 rows and columns."""
    size = 64 if quick else 2048
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    step = production.until_ready(jax.jit(jnp.matmul), matrix, matrix)
    return rate(step, 2e-9 * size**3)


def copy(quick: bool) -> Step:
    """GB/s, read and written, of adding one to 256 MB of float32."""
    size = 2**10 if quick else 2**26
    add_one = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x = jnp.zeros(size)

    def step():
        nonlocal x
        x = jax.block_until_ready(add_one(x))

    return rate(step, 8e-9 * size)


MATMUL = Benchmark(
    name="machine:matmul",
    work="product of 2048 x 2048 matrices, float32",
    contenders={"jnp.matmul": matmul},
    unit="GFLOP/s",
)
BANDWIDTH = Benchmark(
    name="machine:bandwidth",
    work="256 MB read and written",
    contenders={"x + 1": copy},
    unit="GB/s",
)
