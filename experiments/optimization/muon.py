"""Muon (Jordan et al. 2024) for the matrices of a model, Adam for all else."""

import math
from typing import Any

import jax
import optax
from optax import contrib

from experiments.optimization.parameter_groups import dense_kernels

# Of an update of Muon, before the learning rate: about that of Adam, so that one rate and one
# weight decay suit both (Liu et al. 2025, section 2.2).
ROOT_MEAN_SQUARE = 0.2


def scale_by_muon_or_adam() -> optax.GradientTransformation:
    """Muon for the kernels of dense and convolutional layers; Adam for the rest.

    A stack of kernels, one of each layer, is that many matrices; a convolution's kernel [3, 3,
    inputs, outputs] is one of 9 inputs rows. Adam also has the kernels of masked networks, in
    stripes, and those of spline couplings.
    """
    muon = optax.chain(contrib.scale_by_muon(weight_dimension_numbers=_axes), _scale_by_shape())
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam()}, _labels)


def _labels(params: Any) -> Any:
    return jax.tree.map(lambda is_kernel: "muon" if is_kernel else "adam", dense_kernels(params))


def _axes(params: Any) -> Any:
    """Which axes of each kernel are rows and columns of its matrices."""
    return jax.tree.map(lambda kernel: contrib.MuonDimensionNumbers(_rows(kernel), -1), params)


def _rows(kernel: Any) -> tuple[int, ...]:
    return (-2,) if kernel.ndim < 4 else (-4, -3, -2)


def _scale_by_shape() -> optax.GradientTransformation:
    """To `ROOT_MEAN_SQUARE`: that of an orthogonal n x m matrix is 1 / sqrt(max(n, m))."""

    def scale(kernel: Any) -> Any:
        num_rows = math.prod(kernel.shape[axis] for axis in _rows(kernel))
        return ROOT_MEAN_SQUARE * math.sqrt(max(num_rows, kernel.shape[-1])) * kernel

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))
