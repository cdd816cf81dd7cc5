"""`jax.jit` without a fusion of XLA that computes wrong sums on CPUs.

From jaxlib 0.10.2 on XLA hands sums over a few hundred values or more to another library, together
with the elementwise operations before them, and confuses some of these:

    jax.jit(lambda x: jnp.sum(jnp.expm1(x) + jnp.expm1(2 * x), axis=-1))

is wrong in the first digit (likewise log and log1p; see also github.com/jax-ml/jax/issues/39103).
The public functions are compiled without that fusion. Functions of one's own that contain them are
not: set the environment variable XLA_FLAGS to `FLAG` before JAX starts, as `experiments.main` does.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_FAULTY = (0, 10, 2), (0, 12)  # from, before: other versions may not know the option
FLAG = f"--{_OPTION}="


def is_faulty() -> bool:
    """Whether this version of jaxlib has that fusion."""
    version = tuple(int(part) for part in jaxlib.__version__.split(".")[:3] if part.isdigit())
    return _FAULTY[0] <= version < _FAULTY[1]


def jit(
    function: Callable[..., Any] | None = None, *, optimize: bool = True, **kwargs: Any
) -> Callable[..., Any]:
    """`jax.jit`, as a decorator with or without arguments.

    Args:
        function: to compile.
        optimize: whether that pays; without, compiling on CPUs takes less than half the time.
        **kwargs: of `jax.jit`.
    """
    if function is None:
        return functools.partial(jit, optimize=optimize, **kwargs)
    inner = jax.jit(function, **kwargs)
    if optimize and not is_faulty():
        return inner

    @functools.cache
    def outer():
        return jax.jit(function, compiler_options=_compiler_options(optimize), **kwargs)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Inside other transformations, where constants or arguments are traced, JAX allows none.
        leaves = [jnp.zeros(()), *jax.tree.leaves((args, kwargs))]
        is_nested = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (inner if is_nested else outer())(*args, **kwargs)

    return call


def _compiler_options(optimize):
    options: dict[str, Any] = {}
    if is_faulty():
        options[_OPTION] = ""
    if not optimize and jax.default_backend() == "cpu":
        options["xla_backend_optimization_level"] = 0
    return options
