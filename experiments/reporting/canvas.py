"""What sheets and charts share: drawn without a display, without the global state of pyplot."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.system.files import open_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT = "#1f2933"
MUTED = "#616e7c"
BLUE = "#486581"
LIGHT_BLUE = "#7aa6d8"
ORANGE = "#c2410c"
_GRID = "#e4e7eb"
# By which names the page knows them, in light and in dark.
_VARIABLES = {
    TEXT: "--text",
    MUTED: "--muted",
    BLUE: "--blue",
    LIGHT_BLUE: "--light-blue",
    ORANGE: "--orange",
    _GRID: "--line",
}
CHART_DPI = 150


def new_chart(width_inches: float, height_inches: float) -> Figure:
    """An empty figure for charts, which lays out its axes by itself."""
    from matplotlib.figure import Figure

    figure = Figure((width_inches, height_inches), CHART_DPI, facecolor="white")
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


def as_svg(figure: Figure) -> str:
    """An element <svg> for a page of HTML, whose style says the colours, fonts and sizes.

    The colours of this module become the page's variables of the same names. Other colours are
    mixed with white by the share `--ink` of the page, so that they can be seen on black.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "path.simplify": True}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return _without_what_the_page_says(file.getvalue())


def _without_what_the_page_says(svg: str) -> str:
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    svg = re.sub(r' (?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", head) + ">" + body
    svg = re.sub(r"font-family:[^;\"]*;?|font: (\d+)px [^;\"]*", _font_size, svg)
    named = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", _color, svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _font_size(found: re.Match[str]) -> str:
    return f"font-size: {found[1]}px" if found[1] else ""


def _color(found: re.Match[str]) -> str:
    variable = _VARIABLES.get(found[0])
    return f"var({variable})" if variable else f"color-mix(in oklab, {found[0]} var(--ink), white)"
