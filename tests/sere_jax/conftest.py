"""Tiny models with random parameters."""

import functools
import math

import jax
import numpy as np
import pytest

import sere_jax

TINY = {"data_shape": (2, 3, 1), "num_layers": 3, "latent_shape": (2,), "hidden_size": 8}


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(quick_compilation):
    """All programs of these tests run for a millisecond."""


@pytest.fixture(scope="session")
def tiny_config():
    """Function of overrides to the configuration of a model of 6 binary pixels."""
    return lambda **overrides: sere_jax.ModelConfig(**{**TINY, **overrides})


@pytest.fixture(scope="session")
def randomize():
    """Function of a tree of shapes, and a seed, to random parameters without a single zero.

    Parameters from `init` are no general position: biases and constants start at zero.
    """

    def draw(shapes, seed=0, kernel_scale=1.5):
        generator = np.random.default_rng(seed)

        def draw_one(path, leaf):
            is_kernel = path[-1].key == "kernel"
            fan_in = math.prod(leaf.shape[-4:-1] if "Conv" in str(path) else leaf.shape[-2:-1])
            other_scale = 0.15 if _is_spline_head(path) else 0.5
            scale = kernel_scale * fan_in**-0.5 if is_kernel else other_scale
            return (scale * generator.standard_normal(leaf.shape)).astype(np.float32)

        return jax.tree_util.tree_map_with_path(draw_one, shapes)

    return draw


@pytest.fixture(scope="session")
def random_model(tiny_config, randomize):
    """Function of overrides to a tiny model and random parameters for it."""

    @functools.cache
    def create(**overrides):
        model = sere_jax.create_model(tiny_config(**overrides))
        shapes = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
        return model, _with_mild_splines(randomize(shapes))

    return create


def _is_spline_head(path):
    """Whether these are parameters of splines, which float32 can invert where they are mild."""
    return path[-1].key.endswith("_head")


def _with_mild_splines(params):
    """With splines of priors whose codes posteriors propose."""

    def milder(path, leaf):
        is_input = "['splines']" in jax.tree_util.keystr(path) and not _is_spline_head(path)
        return 0.3 * leaf if is_input else leaf

    return jax.tree_util.tree_map_with_path(milder, params)


@pytest.fixture(scope="session")
def random_module(randomize):
    """Function of a module and the inputs of one of its methods to random parameters for it."""

    def create(module, *inputs, seed=0, **kwargs):
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **kwargs))
        return {"params": randomize(variables.get("params", {}), seed)}

    return create
