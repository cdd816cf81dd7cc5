"""Sheets of images, in which a pixel stays a crisp square.

Each function writes a PNG file and returns its path. Images are [num, H, W, C], gray (C = 1) or RGB
(C = 3): floats in [0, 1], clipped to that range with NaN as black, or uint8. Other shapes and types
raise a ValueError.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from experiments.reporting.canvas import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_SHEET_WIDTH = 800
_GAP = 2
_GROUP_GAP = 14
_MARGIN = 12
_TITLE_HEIGHT = 30
_LABEL_WIDTH = 150
_LABEL_SIZE = 13
# Of the labels: legible on white and on black, as all but the images is transparent.
_LABEL_COLOR = "#76828f"
_MAX_COLUMNS_OF_COMPARISON = 8
_MAX_COLUMNS_OF_BUILD_UP = 16
_GAP_COLOR = (203, 210, 217)
_LARGEST_FLOAT = 2.0  # of images whose values are meant to lie from 0 to 1


def save_image_grid(
    images: npt.ArrayLike,
    path: str | os.PathLike[str],
    *,
    num_columns: int | None = None,
    upscale: int | None = None,
) -> Path:
    """Writes images as one sheet, row by row.

    Args:
        images: [num, H, W, C].
        path: PNG file to write.
        num_columns: Images in a row; None makes the sheet as square as it can be.
        upscale: Side of the square, in pixels of the sheet, which one pixel of an image becomes;
            None takes the one for which the sheet is about 800 pixels wide.
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
    return save(figure, path)


def save_comparison(rows: Mapping[str, npt.ArrayLike], path: str | os.PathLike[str]) -> Path:
    """Writes several versions of the same images, each above the next one.

    `rows` has the versions by their labels, [num, H, W, C] each, in the same order and of the same
    shape.
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
            _write_text(figure, label, left - 8, y, "right", _LABEL_SIZE, _LABEL_COLOR)
    return save(figure, path)


def save_build_up(
    images: npt.ArrayLike, layer_of_pixel: npt.ArrayLike, path: str | os.PathLike[str]
) -> Path:
    """Writes how images come into being: a row an image, in which the l-th one has l layers.

    Of many layers, evenly spaced ones are shown. Pixels that no layer has generated yet are gray.

    `images` are [num, H, W, C]; `layer_of_pixel` [H, W] has the layer from 0 to L - 1 that
    generates each pixel.
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
        _write_text(figure, label, center, y, "center", _LABEL_SIZE, _LABEL_COLOR)
    return save(figure, path)


def _to_rgb(images: npt.ArrayLike) -> np.ndarray:
    array = np.asarray(images)
    if array.ndim != 4 or not array.size or array.shape[-1] not in (1, 3):
        raise ValueError(f"images must have the shape [num, H, W, 1 or 3], not {array.shape}")
    if array.dtype != np.uint8:
        if array.dtype.kind in "biu":
            raise ValueError(f"images must be floats in [0, 1] or uint8, not {array.dtype}")
        largest = np.max(array, initial=0.0, where=np.isfinite(array))
        if largest > _LARGEST_FLOAT:
            raise ValueError(
                f"images must be floats in [0, 1] or uint8, but one is {largest:g}; "
                "sere_jax.to_pixels(model, images) makes them of a model's images"
            )
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


def _new_pixel_figure(width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    # Half a pixel more, as the canvas rounds its size down.
    size = (width + 0.5) / _DPI, (height + 0.5) / _DPI
    return Figure(size, _DPI, facecolor="none")


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
