"""Figures of a run as PNG files: image sheets, learning curves and the KL of each layer.

All are drawn without a display and without the global state of pyplot, on a light background.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from experiments.system.files import open_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHEET_DPI = 100
_CHART_DPI = 150
_SHEET_WIDTH = 800
_GAP = 2
_GROUP_GAP = 14
_MARGIN = 12
_TITLE_HEIGHT = 30
_LABEL_WIDTH = 104
_MAX_COLUMNS_OF_COMPARISON = 8
_MAX_COLUMNS_OF_BUILD_UP = 16
_GAP_COLOR = (203, 210, 217)

_TEXT = "#1f2933"
_MUTED = "#616e7c"
_GRID = "#e4e7eb"
_TRAIN = "#7aa6d8"
_VALIDATION = "#c2410c"
_SCHEDULE = "#486581"
_LAYERS_COLOR_MAP = "viridis"


def save_image_grid(
    images: npt.ArrayLike,
    path: str | os.PathLike[str],
    *,
    num_columns: int | None = None,
    upscale: int | None = None,
) -> Path:
    """Writes images as one sheet, row by row, in which a pixel stays a crisp square.

    Args:
        images: Images, [num, H, W, C], gray (C = 1) or RGB (C = 3): floats in [0, 1], clipped to
            that range with NaN as black, or uint8.
        path: PNG file to write.
        num_columns: Images in a row; None makes the sheet as square as it can be.
        upscale: Side of the square, in pixels of the sheet, which one pixel of an image becomes;
            None takes the one for which the sheet is about 800 pixels wide.

    Returns:
        `path`.

    Raises:
        ValueError: The images have another shape or type, or a number is not positive.
    """
    pixels = _to_rgb(images)
    num, _, width, _ = pixels.shape
    for name, value in (("num_columns", num_columns), ("upscale", upscale)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, not {value}")
    num_columns = num_columns or math.ceil(math.sqrt(num))
    upscale = upscale or _upscale_to_fit(num_columns * width)
    sheet = _tile(pixels, num_columns, upscale)
    figure = _new_pixel_figure(sheet.shape[1] + 2 * _MARGIN, sheet.shape[0] + 2 * _MARGIN)
    _place(figure, sheet, _MARGIN, _MARGIN)
    return _save(figure, path)


def save_comparison(rows: Mapping[str, npt.ArrayLike], path: str | os.PathLike[str]) -> Path:
    """Writes several versions of the same images, each above the next one.

    Args:
        rows: Versions by their labels, each [num, H, W, C] as for `save_image_grid`, in the same
            order and of the same shape.
        path: PNG file to write.

    Returns:
        `path`.

    Raises:
        ValueError: The images have another shape or type, or the shapes differ.
    """
    pixels = [_to_rgb(images) for images in rows.values()]
    if any(version.shape != pixels[0].shape for version in pixels):
        shapes = ", ".join(f"{label} {np.shape(images)}" for label, images in rows.items())
        raise ValueError(f"all rows must have the same shape, not {shapes}")
    num, _, width, _ = pixels[0].shape
    num_columns = math.ceil(num / math.ceil(num / _MAX_COLUMNS_OF_COMPARISON))
    upscale = _upscale_to_fit(num_columns * width)
    groups = []
    for start in range(0, num, num_columns):
        parts = [version[start : start + num_columns] for version in pixels]
        groups.append(_tile(np.concatenate(parts), len(parts[0]), upscale))

    group_height, group_width, _ = groups[0].shape
    left = _MARGIN + _LABEL_WIDTH
    height = len(groups) * (group_height + _GROUP_GAP) - _GROUP_GAP
    figure = _new_pixel_figure(left + group_width + _MARGIN, height + 2 * _MARGIN)
    for index, group in enumerate(groups):
        top = _MARGIN + index * (group_height + _GROUP_GAP)
        _place(figure, group, left, top)
        for row, label in enumerate(rows):
            y = top + (row + 0.5) / len(rows) * group_height
            _write_text(figure, label, left - 8, y, "right", 9, _MUTED)
    return _save(figure, path)


def save_build_up(
    images: npt.ArrayLike, layer_of_pixel: npt.ArrayLike, path: str | os.PathLike[str]
) -> Path:
    """Writes how images come into being: a row an image, in which the l-th one has l layers.

    Of many layers, evenly spaced ones are shown. Pixels that no layer has generated yet are gray.

    Args:
        images: [num, H, W, C] as for `save_image_grid`.
        layer_of_pixel: [H, W], the layer from 0 to L - 1 that generates each pixel.
        path: PNG file to write.

    Returns:
        `path`.

    Raises:
        ValueError: The images have another shape or type than allowed or than `layer_of_pixel`.
    """
    pixels, layers = _to_rgb(images), np.asarray(layer_of_pixel)
    if layers.shape != pixels.shape[1:3]:
        raise ValueError(f"layer_of_pixel must be {pixels.shape[1:3]}, not {layers.shape}")
    num_layers = int(layers.max()) + 1
    count = min(num_layers, _MAX_COLUMNS_OF_BUILD_UP)
    shown = np.round(np.linspace(0, num_layers - 1, count)).astype(int)
    is_there = (layers <= shown[:, None, None])[..., None]
    stages = np.where(is_there, pixels[:, None], np.array(_GAP_COLOR, np.uint8))
    upscale = _upscale_to_fit(count * pixels.shape[2])
    sheet = _tile(stages.reshape(-1, *pixels.shape[1:]), count, upscale)
    figure = _new_pixel_figure(
        sheet.shape[1] + 2 * _MARGIN, sheet.shape[0] + 2 * _MARGIN + _TITLE_HEIGHT
    )
    _place(figure, sheet, _MARGIN, _MARGIN + _TITLE_HEIGHT)
    for column, layer in enumerate(shown):
        center = _MARGIN + (column + 0.5) / count * sheet.shape[1]
        label = f"l = {layer + 1}" if column == 0 else f"{layer + 1}"
        y = (_MARGIN + _TITLE_HEIGHT) / 2
        _write_text(figure, label, center, y, "center", 9, _MUTED)
    return _save(figure, path)


def save_learning_curves(
    metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]
) -> Path:
    """Draws the ELBO of training and validation against epochs, and the schedules below.

    The ELBO's axis leaves out values far below the others, those of the first updates above all,
    and says so. A panel below the ELBO appears for each of `gradient_norm`, `learning_rate` and
    `kl_weight` that has been logged.

    Args:
        metrics: Records as `read_metrics` returns them. Keys that a record lacks, and values
            that are None or not finite, are skipped; there may be no records at all.
        path: PNG file to write.

    Returns:
        `path`.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    panels = {
        name: points
        for name in ("gradient_norm", "learning_rate", "kl_weight")
        if len(points := _points(metrics, "train", name))
    }
    figure = _new_chart(8.0, 4.2 + 1.25 * len(panels))
    axes_column = figure.subplots(
        1 + len(panels), sharex=True, squeeze=False, height_ratios=[3.4] + [1.0] * len(panels)
    )[:, 0]
    _draw_elbo(axes_column[0], metrics)
    for axes, (name, points) in zip(axes_column[1:], panels.items(), strict=True):
        marker = _marker_for(points)
        axes.plot(*points.T, color=_SCHEDULE, linewidth=1.1, marker=marker, markersize=4)
        match name:
            case "gradient_norm":
                axes.set_ylabel("gradient norm")
                positive = points[points[:, 1] > 0, 1]
                decades = np.ptp(np.log10(positive)) if len(positive) else 0.0
                if decades > 0.5:  # a linear axis labels a narrow range better
                    axes.set_yscale("log")
                    axes.yaxis.set_major_locator(
                        LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=5)
                    )
                    axes.yaxis.set_major_formatter("{x:g}")
                    axes.yaxis.set_minor_formatter(NullFormatter())
            case "learning_rate":
                axes.set_ylabel("learning rate")
                axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            case "kl_weight":
                axes.set_ylabel("KL weight")
                axes.set_ylim(0.0, 1.08 * max(1.0, points[:, 1].max()))
        _style(axes)
    axes_column[-1].set_xlabel("epochs")
    figure.align_ylabels(axes_column)
    return _save(figure, path)


def save_learning_curves_of_runs(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], path: str | os.PathLike[str]
) -> Path:
    """Draws the validation ELBO of several runs against epochs, best first in the legends.

    Args:
        panels: By their titles, what to draw side by side: records as `read_metrics` returns them,
            by the names of the runs; at least one record of a run is of the validation set.
        path: PNG file to write.

    Returns:
        `path`.
    """
    figure = _new_chart(max(9.0, 6.5 * len(panels)), 5.4)
    for axes, (title, runs) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        axes.set_title(title, fontsize=11)
        _draw_elbo_of_runs(axes, runs)
    return _save(figure, path)


def _draw_elbo_of_runs(axes: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    curves = {name: _points(records, "validation", "elbo") for name, records in runs.items()}
    names = sorted(curves, key=lambda name: -curves[name][:, 1].max())
    for name, color, dashes in zip(
        names, _layer_colors(len(names)), itertools.cycle(["-", "--"]), strict=False
    ):
        label = f"{name}, {curves[name][:, 1].max():.2f}"
        style = {"color": color, "marker": _marker_for(curves[name]), "label": label}
        axes.plot(*curves[name].T, linestyle=dashes, linewidth=1.4, **style)
    # What the first epochs look like would squeeze the rest.
    highest = max(curve[:, 1].max() for curve in curves.values())
    lowest = min(curve[len(curve) // 10 :, 1].min() for curve in curves.values())
    axes.set_ylim(lowest, highest + 0.05 * (highest - lowest or 1.0))
    axes.set_xlabel("epochs")
    axes.set_ylabel("validation ELBO (nats)")
    _style(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=_TEXT, loc="best")


def save_kl_per_layer(
    kl_per_layer: npt.ArrayLike,
    path: str | os.PathLike[str],
    history: Iterable[tuple[float, Sequence[float | None]]] | None = None,
) -> Path:
    """Draws how much information each layer of latent variables carries, as Figure S8 does.

    Args:
        kl_per_layer: KL of each layer l = 1, ..., L, [L] in nats; NaN leaves its bar out.
        path: PNG file to write.
        history: Pairs of an epoch and the KL of each layer then, [L] in nats. If there are any,
            a second panel shows every layer over the epochs, in the colour of its bar.

    Returns:
        `path`.

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
            raise ValueError(
                f"the history has {len(entry)} layers at epoch {epoch}, not {num_layers}"
            )

    figure = _new_chart(8.0, 7.4 if entries else 4.0)
    axes_column = figure.subplots(2 if entries else 1, squeeze=False)[:, 0]
    colors = _layer_colors(num_layers) if entries else [_SCHEDULE] * num_layers

    bars = axes_column[0]
    layers = np.arange(1, num_layers + 1)
    bars.bar(layers, np.nan_to_num(kl), width=0.8 if num_layers > 1 else 0.4, color=colors)
    bars.set_xlim((0.4, num_layers + 0.6) if num_layers > 1 else (0.0, 2.0))
    bars.set_title(f"KL of all layers together: {np.nansum(kl):.2f} nats", fontsize=11)
    bars.set_xlabel("layer $l$")
    bars.set_ylabel("KL (nats)")
    if num_layers <= 20:
        bars.set_xticks(layers)
    _style(bars, grid_axis="y")

    if entries:
        _draw_kl_history(axes_column[1], entries, colors)
    return _save(figure, path)


def save_posterior_comparison(
    path: str | os.PathLike[str],
    *,
    exact: tuple[npt.ArrayLike, npt.ArrayLike],
    codes: Mapping[str, npt.ArrayLike],
    steps: Sequence[int],
    gaps: Mapping[str, Sequence[float]],
    mean_field_gap: float,
) -> Path:
    """Draws how close trained posteriors come to the exact one (Proposition 2).

    Args:
        path: PNG file to write.
        exact: Mean [2] and covariance [2, 2] of the exact posterior of the first two noises e_l.
        codes: Samples of them from each trained posterior, [num, 2], by its name.
        steps: Updates after which the gaps were measured, above 0.
        gaps: log p(x) - ELBO in nats after each of `steps`, by the name of the posterior.
        mean_field_gap: The least gap of a factorized posterior, in nats.

    Returns:
        `path`.
    """
    figure = _new_chart(10.0, 4.3)
    left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.25])
    colors = dict(zip(gaps, (_SCHEDULE, _VALIDATION), strict=True))

    mean, covariance = (np.asarray(values, np.float64) for values in exact)
    angles = np.linspace(0.0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for radius in (1.0, 2.0, 3.0):
        ellipse = mean[:, None] + radius * np.linalg.cholesky(covariance) @ circle
        label = "exact posterior, 1 to 3 σ" if radius == 1.0 else None
        left.plot(*ellipse, color=_TEXT, linewidth=1.0, label=label)
    for name, samples in codes.items():
        left.plot(*np.asarray(samples).T, ".", color=colors[name], markersize=2.2, label=name)
    left.set_aspect("equal", adjustable="datalim")
    left.set_title("posterior of two codes, for one x", fontsize=11)
    left.set_xlabel("$e_1$")
    left.set_ylabel("$e_2$")
    left.legend(frameon=False, fontsize=9, labelcolor=_TEXT, loc="upper right", markerscale=4)
    _style(left)

    for name, values in gaps.items():
        right.plot(steps, values, color=colors[name], linewidth=1.8)
        right.annotate(
            f"{name}: {values[-1]:.2g} nats",
            (steps[-1], values[-1]),
            textcoords="offset points",
            xytext=(-14, 0) if values[-1] < mean_field_gap / 2 else (0, 8),
            ha="right",
            fontsize=10,
            color=colors[name],
        )
    right.axhline(mean_field_gap, color=_MUTED, linewidth=1.0, linestyle="--")
    right.annotate(
        f"least mean-field gap: {mean_field_gap:.2f} nats",
        (steps[-1], mean_field_gap),
        textcoords="offset points",
        xytext=(0, -13),
        ha="right",
        fontsize=9,
        color=_MUTED,
    )
    right.set(xscale="log", yscale="log", xlabel="updates of the posterior")
    right.set_ylabel("log p(x) - ELBO (nats)")
    right.xaxis.set_major_formatter("{x:g}")
    right.yaxis.set_major_formatter("{x:g}")
    right.set_title("gap of the bound, same generative model", fontsize=11)
    _style(right)
    return _save(figure, path)


def _draw_elbo(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    train = _points(metrics, "train", "elbo")
    validation = _points(metrics, "validation", "elbo")
    axes.set_ylabel("ELBO (nats)")
    _style(axes)
    if not len(train) and not len(validation):
        axes.set_title("no ELBO logged yet", fontsize=11, color=_MUTED)
        return
    if len(train):
        axes.plot(
            *train.T,
            color=_TRAIN,
            linewidth=1.2,
            marker=_marker_for(train),
            markersize=4,
            label="train",
        )
    if len(validation):
        marker = "o" if len(validation) <= 60 else None
        axes.plot(
            *validation.T,
            color=_VALIDATION,
            linewidth=1.6,
            marker=marker,
            markersize=3.5,
            label=f"validation, best {validation[:, 1].max():.2f}",
        )
    values = np.concatenate([train[:, 1], validation[:, 1]])
    lower, upper = _limits_of_the_bulk(values)
    axes.set_ylim(lower, upper)
    num_cut = int(np.sum((values < lower) | (values > upper)))
    if num_cut:
        note = f"{num_cut} of {len(values)} values lie outside the axis"
        axes.set_title(note, loc="right", fontsize=9, color=_MUTED)
    axes.legend(loc="lower right", frameon=False, fontsize=10, labelcolor=_TEXT)
    _add_bits_per_dim(axes, metrics)


def _add_bits_per_dim(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    """An axis on the right in bits/dim, which are affine in nats; records tell how."""
    both = np.array(
        [
            (record["elbo"], record["bits_per_dim"])
            for record in metrics
            if all(_is_finite_number(record.get(name)) for name in ("elbo", "bits_per_dim"))
        ]
    )
    if len(both) < 2 or not np.ptp(both[:, 0]):
        return
    lowest, highest = both[both[:, 0].argmin()], both[both[:, 0].argmax()]
    slope = (highest[1] - lowest[1]) / (highest[0] - lowest[0])

    def to_bits(elbo):
        return lowest[1] + slope * (elbo - lowest[0])

    def to_elbo(bits):
        return lowest[0] + (bits - lowest[1]) / slope

    bits_axes = axes.secondary_yaxis("right", functions=(to_bits, to_elbo))
    bits_axes.set_ylabel("bits/dim", fontsize=11, color=_TEXT)
    bits_axes.tick_params(colors=_MUTED, labelsize=10)
    bits_axes.spines["right"].set_color(_MUTED)


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
    axes.set_title("KL of each layer during training, in the colour of its bar", fontsize=11)
    axes.set_xlabel("epochs")
    axes.set_ylabel("KL (nats)")
    _style(axes)


def _points(metrics: Sequence[Mapping[str, Any]], split: str, name: str) -> np.ndarray:
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
    bulk = bulk_upper - bulk_lower
    lower = max(values.min(), bulk_lower - bulk)
    upper = min(values.max(), bulk_upper + bulk)
    margin = 0.05 * (upper - lower) or 0.05 * abs(upper) or 1.0
    return lower - margin, upper + margin


def _marker_for(points: np.ndarray) -> str | None:
    return "o" if len(points) == 1 else None


def _layer_colors(num_layers: int) -> list[Any]:
    from matplotlib import colormaps

    # The last tenth of the map is a yellow that is hard to see on white.
    return list(colormaps[_LAYERS_COLOR_MAP](np.linspace(0.0, 0.9, num_layers)))


def _style(axes: Axes, grid_axis: Any = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelsize=10)
    axes.xaxis.label.set(color=_TEXT, fontsize=11)
    axes.yaxis.label.set(color=_TEXT, fontsize=11)
    axes.title.set_color(_TEXT)
    axes.grid(axis=grid_axis, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _to_rgb(images: npt.ArrayLike) -> np.ndarray:
    array = np.asarray(images)
    if array.ndim != 4 or not array.size or array.shape[-1] not in (1, 3):
        raise ValueError(f"images must have the shape [num, H, W, 1 or 3], not {array.shape}")
    if array.dtype != np.uint8:
        if array.dtype.kind in "biu":
            raise ValueError(f"images must be floats in [0, 1] or uint8, not {array.dtype}")
        clipped = np.nan_to_num(np.clip(array.astype(np.float32), 0.0, 1.0))
        array = np.round(255.0 * clipped).astype(np.uint8)
    return np.broadcast_to(array, (*array.shape[:-1], 3))


def _upscale_to_fit(width: int) -> int:
    smaller = max(1, _SHEET_WIDTH // width)
    return min(smaller, smaller + 1, key=lambda upscale: abs(upscale * width - _SHEET_WIDTH))


def _tile(pixels: np.ndarray, num_columns: int, upscale: int) -> np.ndarray:
    """Sheet [height, width, 3] of images [num, H, W, 3]; gaps and cells left over are gray."""
    enlarged = pixels.repeat(upscale, axis=1).repeat(upscale, axis=2)
    num, height, width, channels = enlarged.shape
    num_rows = math.ceil(num / num_columns)
    cells = np.empty((num_rows * num_columns, height + _GAP, width + _GAP, channels), np.uint8)
    cells[:] = _GAP_COLOR
    cells[:num, :height, :width] = enlarged
    sheet = cells.reshape(num_rows, num_columns, *cells.shape[1:]).swapaxes(1, 2)
    sheet = sheet.reshape(num_rows * (height + _GAP), num_columns * (width + _GAP), channels)
    return sheet[:-_GAP, :-_GAP]


def _new_chart(width_inches: float, height_inches: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure((width_inches, height_inches), _CHART_DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    return figure


def _new_pixel_figure(width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    # Half a pixel more, as the canvas rounds its size down.
    size = (width + 0.5) / _SHEET_DPI, (height + 0.5) / _SHEET_DPI
    return Figure(size, _SHEET_DPI, facecolor="white")


def _place(figure: Figure, pixels: np.ndarray, left: int, top: int) -> None:
    canvas_height = int(figure.bbox.height)
    figure.figimage(pixels, left, canvas_height - top - pixels.shape[0], origin="upper")


def _write_text(
    figure: Figure, text: str, x: float, y: float, align: str, size: float, color: str
) -> None:
    figure.text(
        x / figure.bbox.width,
        1.0 - y / figure.bbox.height,
        text,
        ha=align,
        va="center",
        fontsize=size,
        color=color,
        parse_math=False,
    )


def _save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with open_atomically(path) as file:
        FigureCanvasAgg(figure).print_png(file)
    return Path(path)
