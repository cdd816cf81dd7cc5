"""Which parameters of a model a setting of the optimizer means, by their names."""

from typing import Any

import jax

# Modules of a layer of `sere_vae` that generate; the others infer (`sere_jax.layer.Layer`).
GENERATIVE = (
    "prior",
    "prior_observed",
    "prior_condition",
    "bijector",
    "bijector_condition",
    "data_layer",
)


def decayed(which: str, params: Any) -> Any:
    """A tree of bools: whether `config.training.weight_decay_on=which` means a parameter."""
    means = {"all": lambda names: True, "generative": _is_generative, "kernels": _is_kernel}[which]
    return jax.tree_util.tree_map_with_path(lambda path, _: means(_names(path)), params)


def _is_generative(names: list[str]) -> bool:
    return not set(GENERATIVE).isdisjoint(names)


def _is_kernel(names: list[str]) -> bool:
    return "kernel" in names[-1] or names[-1].endswith("_head")  # the latter of spline couplings


def _names(path: tuple[Any, ...]) -> list[str]:
    return [entry.key for entry in path]
