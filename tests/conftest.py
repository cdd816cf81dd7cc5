"""Fixtures of all tests."""

import jax
import pytest

from experiments import xla

xla.avoid_faulty_fusions()


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles without optimization: programs that run for a moment need none."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
