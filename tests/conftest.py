"""Fixtures of all tests."""

import collections
import ctypes
import gc
import os
import pathlib
import resource
import tempfile

import jax
import pytest
from command_line import QUICK_FLAGS, SHARED_FOLDER

import sere_jax  # noqa: F401 (its import sets XLA's flag, before anything compiles)

PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
LARGE = 1.5e9  # bytes


def pytest_configure(config):
    """Makes the folder that all processes of the session share; xdist's workers inherit it.

    Compiled programs are kept there, so that no two processes, and no two files of tests, compile
    the same one.
    """
    if not hasattr(config, "workerinput"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_FLAGS}".strip()
        folder = tempfile.TemporaryDirectory(prefix="sere_jax_tests_")
        config.add_cleanup(folder.cleanup)
        os.environ[SHARED_FOLDER] = folder.name
        os.environ.setdefault(PROGRAMS, f"{folder.name}/programs")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # lines of Python, which no test reads
    jax.config.update(PROGRAMS.lower(), os.environ[PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_traceback_in_locations_limit", 0)
    gc.set_threshold(100_000, 50, 50)  # tracing makes many objects; looking at them takes a tenth


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left with one while the other has ended.

    Those of which most tests are slow, then those with most tests.
    """
    tests = collections.Counter(item.path for item in items)
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path] / tests[item.path], -tests[item.path], item.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Frees compiled programs after each file, which would add up to gigabytes."""
    result = yield
    if nextitem is None or nextitem.path != item.path or resident_memory() > LARGE:
        jax.clear_caches()
        gc.collect()  # what refers to itself, as models do
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc would keep it
            trim(0)
    return result


def resident_memory():
    """Bytes of this process; 0 where that is not known."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


@pytest.fixture(scope="session", autouse=True)
def _products_of_float32():
    """GPUs round what float32 products read to TF32 unless told otherwise; tests compare more."""
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles without optimization: programs that run for a moment need none."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
