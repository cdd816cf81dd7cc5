"""`jax.jit` that computes right sums on CPUs.

From jaxlib 0.10.2 on XLA hands reductions over a few hundred values or more to another library,
together with the elementwise operations before them, and confuses some of these:

    jax.jit(lambda x: jnp.sum(jnp.expm1(x) + jnp.expm1(2 * x), axis=-1))

is wrong in the first digit (likewise log and log1p, and maxima; see also
github.com/jax-ml/jax/issues/39103). Three steps keep results right, none of which looks at version
numbers:

1. Importing `sere_jax` adds `FLAG` to the environment variable XLA_FLAGS, if this jaxlib knows it
   (`sere_jax.xla_flag`). It takes reductions from that library, and leaves it matrix products and
   convolutions. XLA reads the variable once, when it compiles first: import `sere_jax` before JAX
   computes anything, and all code of the process is right.
2. Before the first result a small program is compiled and compared with float64. Where it is wrong,
   say because XLA has read its flags before, the public functions are compiled with an option of
   their own, and code of yours that is compiled around them warns once.
3. If no option makes the small program right, the public functions raise.
"""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from sere_jax.xla_flag import FLAG, OPTION

# The same as an option of one program, and, should that not do, nothing at all to that library.
_VALUES = ("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION", "")
_surroundings = threading.local()


def is_faulty() -> bool:
    """Whether what `jax.jit` compiles in this process is wrong; it compiles one small program."""
    return not _is_right(())


def jit(
    function: Callable[..., Any] | None = None, *, optimize: bool = True, **kwargs: Any
) -> Callable[..., Any]:
    """`jax.jit` with right sums, as a decorator with or without arguments.

    Without `optimize`, compiling on CPUs takes less than half the time; other options are those of
    `jax.jit`.

    Raises:
        RuntimeError: at the call; this version of jaxlib is wrong whatever its options are.
    """
    if function is None:
        return functools.partial(jit, optimize=optimize, **kwargs)
    inner = jax.jit(function, **kwargs)

    @functools.cache
    def outer() -> Callable[..., Any]:
        options = dict(_right_options())
        if not optimize and jax.default_backend() == "cpu":
            options["xla_backend_optimization_level"] = 0
        return jax.jit(function, compiler_options=options, **kwargs) if options else inner

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if optimize and not is_faulty():
            return inner(*args, **kwargs)
        # Inside other transformations, where constants or arguments are traced, JAX allows none.
        leaves = [jnp.zeros(()), *jax.tree.leaves((args, kwargs))]
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            if not getattr(_surroundings, "are_right", False):
                _warn_if_faulty()
            return inner(*args, **kwargs)
        compiled = outer()
        with right_surroundings():
            return compiled(*args, **kwargs)

    return call


@functools.cache
def _right_options() -> tuple[tuple[str, Any], ...]:
    """The compiler options, as few as possible, with which the probe is right."""
    choices: list[tuple[tuple[str, Any], ...]] = [()]
    choices += [((OPTION, value),) for value in _VALUES]
    for options in choices:
        if _is_right(options):
            return options
    raise RuntimeError(
        f"jaxlib {jaxlib.__version__} computes wrong sums on this machine, and no option of XLA "
        "that is known avoids it; install another version of jax and jaxlib"
    )


@functools.cache
def _warn_if_faulty() -> None:
    if is_faulty():
        warnings.warn(
            f"sums that are compiled around sere_jax are wrong with jaxlib {jaxlib.__version__}: "
            "import sere_jax before JAX computes anything, or set the environment variable "
            f"XLA_FLAGS={FLAG}, or compile with sere_jax.compilation.jit instead of jax.jit",
            RuntimeWarning,
            stacklevel=3,
        )


@functools.cache
def _is_right(options: tuple[tuple[str, Any], ...]) -> bool:
    """Whether reductions of elementwise functions equal those in float64."""
    x = np.linspace(0.1, 2.0, 4096, dtype=np.float32)

    # One reduction: what several of them share, constants say, XLA computes apart.
    def probe(library: Any, x: Any) -> Any:
        functions = (library.expm1, library.log, library.log1p)
        return library.sum(sum(f(x) + f((i + 2) * x) for i, f in enumerate(functions)), axis=-1)

    # Compiled ahead of its call, it also runs while another function is being traced.
    lowered = jax.jit(functools.partial(probe, jnp)).lower(jax.ShapeDtypeStruct(x.shape, x.dtype))
    try:
        found = lowered.compile(compiler_options=dict(options))(x)
    except jax.errors.JaxRuntimeError:  # a version that does not know the option
        return False
    return np.allclose(found, probe(np, x.astype(np.float64)), rtol=1e-4)


@contextlib.contextmanager
def right_surroundings() -> Iterator[None]:
    """Code in it is traced for a program that is compiled with the right options."""
    before = getattr(_surroundings, "are_right", False)
    _surroundings.are_right = True
    try:
        yield
    finally:
        _surroundings.are_right = before
