"""Charts that compare the ELBOs of several runs. Records are those of `read_metrics`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reporting.canvas import TEXT, new_chart, save, style_axes
from experiments.reporting.charts import label_ends, layer_colors, marker_for, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_learning_curves_of_runs(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], path: str | os.PathLike[str]
) -> Path:
    """Draws the validation ELBO of several runs against epochs, best first in the legends.

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
    axes = figure.subplots()
    colors = dict(zip(curves, layer_colors(len(curves), 0.75), strict=True))
    for (name, points), dash in zip(curves.items(), itertools.cycle(["-", "--"]), strict=False):
        style: dict[str, Any] = {"color": colors[name], "linestyle": dash, "linewidth": 1.5}
        axes.plot(*points.T, marker=marker_for(points), **style)
    _limit_to_later_epochs(axes, curves.values())
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"{'training' if split == 'train' else split} ELBO (nats)")
    style_axes(axes)
    ends = {name: points[-1, 1] for name, points in curves.items()}
    named = {name: f"{name}, {end:.2f}" for name, end in ends.items()}
    label_ends(
        axes,
        {named[name]: end for name, end in ends.items()},
        {named[name]: color for name, color in colors.items()},
    )
    return save(figure, path)


def _limit_to_later_epochs(axes: Axes, curves: Iterable[np.ndarray]) -> None:
    """What the first epochs look like would squeeze the rest."""
    values = list(curves)
    highest = max(curve[:, 1].max() for curve in values)
    lowest = min(curve[len(curve) // 10 :, 1].min() for curve in values)
    axes.set_ylim(lowest, highest + 0.05 * (highest - lowest or 1.0))


def _draw_elbo_of_runs(axes: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    curves = {name: points_of(records, "validation", "elbo") for name, records in runs.items()}
    names = sorted(curves, key=lambda name: -curves[name][:, 1].max())
    style: dict[str, Any]
    for name, color, dashes in zip(
        names, layer_colors(len(names), 0.9), itertools.cycle(["-", "--"]), strict=False
    ):
        label = f"{name}, {curves[name][:, 1].max():.2f}"
        style = {"color": color, "marker": marker_for(curves[name]), "label": label}
        axes.plot(*curves[name].T, linestyle=dashes, linewidth=1.4, **style)
    _limit_to_later_epochs(axes, curves.values())
    axes.set_xlabel("epochs")
    axes.set_ylabel("validation ELBO (nats)")
    style_axes(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=TEXT, loc="best")
