"""What sheets and charts share: drawn without a display, without the global state of pyplot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.system.files import open_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT = "#1f2933"
MUTED = "#616e7c"
BLUE = "#486581"
ORANGE = "#c2410c"
_GRID = "#e4e7eb"
_CHART_DPI = 150


def new_chart(width_inches: float, height_inches: float) -> Figure:
    """An empty figure for charts, which lays out its axes by itself."""
    from matplotlib.figure import Figure

    figure = Figure((width_inches, height_inches), _CHART_DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    return figure


def style_axes(axes: Axes, grid_axis: Any = "both") -> None:
    """Gives axes the colours and the grid of all charts; call it when labels and title are set."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=10)
    axes.xaxis.label.set(color=TEXT, fontsize=11)
    axes.yaxis.label.set(color=TEXT, fontsize=11)
    axes.title.set_color(TEXT)
    axes.grid(axis=grid_axis, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes the PNG file, whole or not at all; returns `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with open_atomically(path) as file:
        FigureCanvasAgg(figure).print_png(file)
    return Path(path)
