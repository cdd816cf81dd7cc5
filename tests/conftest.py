"""Fixtures of all tests."""

import jax
import pytest

import sere_jax  # noqa: F401 (its import sets XLA's flag, before anything compiles)


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles without optimization: programs that run for a moment need none."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
