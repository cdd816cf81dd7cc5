"""Charts of runs: learning curves and the KL of each layer.

What is drawn is a figure of matplotlib, which `canvas` writes as PNG or as SVG. Lines are labelled
where they end. Records are those of `read_metrics`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from experiments.reporting.canvas import (
    BLUE,
    CHART_DPI,
    LIGHT_BLUE,
    MUTED,
    ORANGE,
    TEXT,
    new_chart,
    save,
    style_axes,
)
from experiments.reporting.captions import LEAST_KL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 8.0  # inches, of a figure that stands alone
_LAST_LAYER = 0.75
_MOST_LABELS = 12  # of bars, and at the ends of lines


def save_learning_curves(
    metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]
) -> Path:
    """Writes `draw_learning_curves` as a PNG file; returns `path`."""
    return save(draw_learning_curves(metrics), path)


def draw_learning_curves(metrics: Sequence[Mapping[str, Any]], width: float = WIDE) -> Figure:
    """Draws the ELBO of training and validation against epochs, and the schedules below.

    The ELBO's axis leaves out values far below the others, those of the first updates above all,
    and says so. A panel below the ELBO appears for each of `gradient_norm`, `learning_rate` and
    `kl_weight` that has been logged.

    Keys that a record lacks, and values that are None or not finite, are skipped; there may be no
    records at all.
    """
    panels = {
        name: points
        for name in ("gradient_norm", "learning_rate", "kl_weight")
        if len(points := points_of(metrics, "train", name))
    }
    figure = new_chart(width, _height(4.2 + 1.25 * len(panels), width))
    axes_column = figure.subplots(
        1 + len(panels), sharex=True, squeeze=False, height_ratios=[3.4] + [1.0] * len(panels)
    )[:, 0]
    _draw_elbo(axes_column[0], metrics)
    for axes, (name, points) in zip(axes_column[1:], panels.items(), strict=True):
        _draw_schedule(axes, name, points)
    axes_column[-1].set_xlabel("epochs")
    figure.align_ylabels(axes_column)
    return figure


def save_kl_per_layer(
    kl_per_layer: npt.ArrayLike,
    path: str | os.PathLike[str],
    history: Iterable[tuple[float, Sequence[float | None]]] | None = None,
) -> Path:
    """Writes `draw_kl_per_layer` as a PNG file; returns `path`."""
    return save(draw_kl_per_layer(kl_per_layer, history), path)


def draw_kl_per_layer(
    kl_per_layer: npt.ArrayLike,
    history: Iterable[tuple[float, Sequence[float | None]]] | None = None,
    width: float = WIDE,
) -> Figure:
    """Draws how much information each layer of latent variables carries, as Figure S8 does.

    Args:
        kl_per_layer: KL of each layer l = 1, ..., L, [L] in nats; NaN leaves its bar out.
        history: Pairs of an epoch and the KL of each layer then, [L] in nats. If there are any,
            a second panel shows every layer over the epochs, in the colour of its bar.
        width: in inches.

    Raises:
        ValueError: `kl_per_layer` is not one-dimensional or empty, or an entry of the history
            has another number of layers.
    """
    kl = np.asarray(kl_per_layer, dtype=np.float64)
    if kl.ndim != 1 or not kl.size:
        raise ValueError(f"kl_per_layer must have the shape [L], not {kl.shape}")
    num_layers = len(kl)
    entries = sorted(history or (), key=lambda entry: entry[0])
    for epoch, entry in entries:
        if len(entry) != num_layers:
            problem = f"the history has {len(entry)} layers at epoch {epoch}, not {num_layers}"
            raise ValueError(problem)

    figure = new_chart(width, _height(7.4 if entries else 4.0, width))
    axes_column = figure.subplots(2 if entries else 1, squeeze=False)[:, 0]
    colors = layer_colors(num_layers, _LAST_LAYER) if entries else [BLUE] * num_layers

    bars = axes_column[0]
    layers = np.arange(1, num_layers + 1)
    drawn = bars.bar(layers, np.nan_to_num(kl), width=0.8 if num_layers > 1 else 0.4, color=colors)
    if num_layers <= _MOST_LABELS:
        labels = ["" if math.isnan(value) else f"{value:.2f}" for value in kl]
        bars.bar_label(drawn, labels, padding=2, fontsize=9, color=TEXT)
        bars.margins(y=0.12)
    bars.set_xlim((0.4, num_layers + 0.6) if num_layers > 1 else (0.0, 2.0))
    bars.set_title(f"KL of all layers together: {np.nansum(kl):.2f} nats", fontsize=11)
    bars.set_xlabel("layer $l$")
    bars.set_ylabel("KL (nats)")
    if num_layers <= 20:
        bars.set_xticks(layers)
    style_axes(bars, grid_axis="y")

    if entries:
        _draw_kl_history(axes_column[1], entries, colors)
    return figure


def _draw_schedule(axes: Axes, name: str, points: np.ndarray) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.plot(*points.T, color=BLUE, linewidth=1.1, marker=marker_for(points), markersize=4)
    match name:
        case "gradient_norm":
            axes.set_title("gradient norm", loc="left", fontsize=10, color=TEXT)
            positive = points[points[:, 1] > 0, 1]
            decades = np.ptp(np.log10(positive)) if len(positive) else 0.0
            if decades > 0.5:  # a linear axis labels a narrow range better
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(
                    LogLocator(subs=(1, 3) if decades < 2 else (1,), numticks=5)
                )
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
        case "learning_rate":
            axes.set_title("learning rate", loc="left", fontsize=10, color=TEXT)
            axes.yaxis.set_major_formatter("{x:g}")
        case "kl_weight":
            axes.set_title("weight of the KL", loc="left", fontsize=10, color=TEXT)
            axes.set_ylim(0.0, 1.08 * max(1.0, points[:, 1].max()))
    style_axes(axes)


def _draw_elbo(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    train = points_of(metrics, "train", "elbo")
    validation = points_of(metrics, "validation", "elbo")
    axes.set_ylabel("ELBO (nats)")
    style_axes(axes)
    if not len(train) and not len(validation):
        axes.set_title("no ELBO logged yet", fontsize=11, color=MUTED)
        return
    style: dict[str, Any]
    if len(train):
        style = {"linewidth": 1.2, "markersize": 4}
        axes.plot(*train.T, color=LIGHT_BLUE, marker=marker_for(train), **style)
    if len(validation):
        style = {"linewidth": 1.6, "markersize": 3.5}
        marker = "o" if len(validation) <= 60 else None
        axes.plot(*validation.T, color=ORANGE, marker=marker, **style)
    values = np.concatenate([train[:, 1], validation[:, 1]])
    lower, upper = _limits_of_the_bulk(values)
    axes.set_ylim(lower, upper)
    num_cut = int(np.sum((values < lower) | (values > upper)))
    if num_cut:
        note = f"{num_cut} of {len(values)} values lie outside the axis"
        axes.set_title(note, loc="right", fontsize=9, color=MUTED)
    named = {"training": train, "validation": validation}
    label_ends(axes, {name: points[-1, 1] for name, points in named.items() if len(points)})


def label_ends(
    axes: Axes, ends: Mapping[str, float], colors: Mapping[str, Any] | None = None
) -> None:
    """Writes names on the right, where their lines end, or as near as they fit."""
    lower, upper = axes.get_ylim()
    least_gap = 11.0 / 72.0 * CHART_DPI / axes.bbox.height
    names = sorted(ends, key=lambda name: ends[name])
    heights = np.array([(ends[name] - lower) / (upper - lower) for name in names])
    for name, height in zip(names, spread(np.clip(heights, 0.0, 1.0), least_gap), strict=True):
        axes.annotate(
            name,
            (1.0, height),
            (4.0, 0.0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colors[name] if colors else TEXT,
        )


def spread(heights: np.ndarray, least_gap: float) -> np.ndarray:
    """The same heights, ascending, moved apart to at least `least_gap`, below 1 if they fit."""
    moved = heights.copy()
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + least_gap)
    moved[-1:] = np.minimum(moved[-1:], 1.0)
    for i in range(len(moved) - 2, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - least_gap)
    return moved


def kl_history(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[float, list[float | None]]]:
    """Pairs of an epoch and the KL of each layer of the validation images then."""
    return [
        (record["epoch"], record["kl_per_layer"])
        for record in metrics
        if record.get("split") == "validation" and are_numbers(record.get("kl_per_layer"))
    ]


def are_numbers(values: Any) -> bool:
    """Whether it is a list of numbers, or None where one is missing, and not empty."""
    is_list = isinstance(values, list) and bool(values)
    return is_list and all(v is None or isinstance(v, int | float) for v in values)


def _height(inches: float, width: float) -> float:
    """Of a figure narrower than `WIDE` less, but not in proportion: text keeps its size."""
    return inches * math.sqrt(width / WIDE)


def _draw_kl_history(
    axes: Axes,
    entries: Sequence[tuple[float, Sequence[float | None]]],
    colors: Sequence[Any],
) -> None:
    epochs = np.array([epoch for epoch, _ in entries], dtype=np.float64)
    kl = np.array([entry for _, entry in entries], dtype=np.float64)
    line_width = 1.6 if len(colors) <= 20 else 0.9
    for layer_kl, color in zip(kl.T, colors, strict=True):
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, layer_kl, color=color, linewidth=line_width, marker=marker)
    if not np.any(kl < 0):
        axes.set_ylim(bottom=0)
    axes.set_title("KL of each layer during training", fontsize=11)
    axes.set_xlabel("epochs")
    axes.set_ylabel("KL (nats)")
    style_axes(axes)
    ends = {f"layer {layer}": end for layer, end in enumerate(kl[-1], 1) if math.isfinite(end)}
    in_use = [name for name, end in ends.items() if end >= LEAST_KL]
    highest = sorted(in_use, key=lambda name: -ends[name])[:_MOST_LABELS]
    label_ends(axes, {name: ends[name] for name in highest})


def points_of(metrics: Sequence[Mapping[str, Any]], split: str, name: str) -> np.ndarray:
    """Pairs of an epoch and the figure called `name` of a split, [num, 2]."""
    pairs = [
        (record["epoch"], record[name])
        for record in metrics
        if record.get("split") == split
        and _is_finite_number(record.get("epoch"))
        and _is_finite_number(record.get(name))
    ]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _limits_of_the_bulk(values: np.ndarray) -> tuple[float, float]:
    """Axis limits with room for all values but those far outside the bulk of them.

    More is allowed to lie below than above, as the ELBO of the first updates is very low.
    """
    bulk_lower = np.percentile(values, 10, method="higher")
    bulk_upper = np.percentile(values, 99)
    if bulk_upper < bulk_lower:  # of two values
        bulk_lower, bulk_upper = values.min(), values.max()
    bulk = bulk_upper - bulk_lower
    lower = max(values.min(), bulk_lower - bulk)
    upper = min(values.max(), bulk_upper + bulk)
    margin = 0.05 * (upper - lower) or 0.05 * abs(upper) or 1.0
    return lower - margin, upper + margin


def marker_for(points: np.ndarray) -> str | None:
    """A single point makes no line."""
    return "o" if len(points) == 1 else None


def layer_colors(num: int, last: float) -> list[str]:
    """Colours from the first of the map to the part `last` of it; its end is faint on white."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in colormaps["viridis"](np.linspace(0.0, last, num))]
