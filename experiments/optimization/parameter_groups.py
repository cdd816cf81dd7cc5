"""Which parameters of a model an optimizer or one of its settings means, by their names."""

from collections.abc import Callable
from typing import Any

import jax

# Modules of a layer of `sere_vae` that generate; the others infer (`sere_jax.layer.Layer`).
GENERATIVE = (
    "prior",
    "prior_observed",
    "prior_condition",
    "bijector",
    "bijector_condition",
    "top_down",
    "data_layer",
)
# Modules whose values `init` computes and training leaves as they are; their gradients are 0.
CONSTANT = ("whitening",)


def decayed(which: str, params: Any) -> Any:
    """A tree of bools: whether `config.training.weight_decay_on=which` means a parameter."""
    means = {"all": lambda names: True, "generative": _is_generative, "kernels": _is_kernel}[which]
    return _named(lambda names: means(names) and not _is_in(CONSTANT, names), params)


def dense_kernels(params: Any) -> Any:
    """A tree of bools: whether a parameter is a kernel of a dense or convolutional layer."""
    return _named(lambda names: names[-1] == "kernel" and not _is_in(CONSTANT, names), params)


def _named(means: Callable[[list[str]], bool], params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: means([entry.key for entry in path]), params
    )


def _is_in(modules: tuple[str, ...], names: list[str]) -> bool:
    return not set(modules).isdisjoint(names)


def _is_generative(names: list[str]) -> bool:
    return _is_in(GENERATIVE, names)


def _is_kernel(names: list[str]) -> bool:
    return "kernel" in names[-1] or names[-1].endswith("_head")  # the latter of spline couplings
