"""XLA's settings, to be made before JAX starts."""

import os

from sere_jax import compilation


def avoid_faulty_fusions() -> None:
    """Adds the flag of `sere_jax.compilation` to XLA_FLAGS, unless it is set there already."""
    flags = os.environ.get("XLA_FLAGS", "")
    if compilation.is_faulty() and compilation.FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {compilation.FLAG}".strip()
