"""Charts that compare the ELBOs of several runs. Records are those of `read_metrics`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reporting.canvas import new_chart, save, style_axes
from experiments.reporting.charts import label_ends, layer_colors, marker_for, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_learning_curves_of_runs(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], path: str | os.PathLike[str]
) -> Path:
    """Draws the validation ELBO of several runs against epochs, each labelled with its best.

    `panels` stand side by side: by their titles, records by the names of the runs. At least one
    record of each run is of the validation set.
    """
    figure = new_chart(max(9.0, 6.5 * len(panels)), 5.4)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, runs) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(title, fontsize=11)
        _draw_elbo_of_runs(axes, runs)
    return save(figure, path)


def save_labelled_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike[str]
) -> Path | None:
    """Draws the ELBO of runs against epochs, each curve labelled where it ends.

    It is that of the validation images if all runs have one, else that of the training. Runs that
    have logged none are left out; of none at all there is no picture, and None is returned.
    """
    for split in ("validation", "train"):
        curves = {name: points_of(records, split, "elbo") for name, records in runs.items()}
        if all(map(len, curves.values())):
            break
    curves = {name: points for name, points in curves.items() if len(points)}
    if not curves:
        return None
    figure = new_chart(10.0, max(5.4, 1.5 + 0.22 * len(curves)))
    split = "training" if split == "train" else split
    _draw_labelled(
        figure.subplots(), curves, {name: points[-1, 1] for name, points in curves.items()}, split
    )
    return save(figure, path)


def _draw_labelled(
    axes: Axes, curves: Mapping[str, np.ndarray], values: Mapping[str, float], split: str
) -> None:
    """Each curve [num, 2] with its name and its value at the height of its end."""
    labels = {name: f"{name}, {values[name]:.2f}" for name in curves}
    colors = dict(zip(labels.values(), layer_colors(len(curves), 0.75), strict=True))
    for (name, points), dashes in zip(curves.items(), itertools.cycle(["-", "--"]), strict=False):
        style: dict[str, Any] = {"color": colors[labels[name]], "linestyle": dashes}
        axes.plot(*points.T, marker=marker_for(points), linewidth=1.5, **style)
    _limit_to_later_epochs(axes, curves.values())
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"{split} ELBO (nats)")
    style_axes(axes)
    label_ends(axes, {labels[name]: points[-1, 1] for name, points in curves.items()}, colors)


def _limit_to_later_epochs(axes: Axes, curves: Iterable[np.ndarray]) -> None:
    """What the first epochs look like would squeeze the rest."""
    values = list(curves)
    highest = max(curve[:, 1].max() for curve in values)
    lowest = min(curve[len(curve) // 10 :, 1].min() for curve in values)
    axes.set_ylim(lowest, highest + 0.05 * (highest - lowest or 1.0))


def _draw_elbo_of_runs(axes: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    curves = {name: points_of(records, "validation", "elbo") for name, records in runs.items()}
    best = {name: points[:, 1].max() for name, points in curves.items()}
    names = sorted(curves, key=lambda name: -best[name])
    _draw_labelled(axes, {name: curves[name] for name in names}, best, "validation")
