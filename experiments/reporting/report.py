"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.reporting import canvas, captions, charts, sections
from experiments.reporting.cards import cards
from experiments.run_folder import RESULTS_FILE
from experiments.run_folder.configuration import CONFIG_FILE
from experiments.run_folder.metrics import METRICS_FILE, read_metrics
from experiments.system.errors import UserError
from experiments.system.files import open_atomically

if TYPE_CHECKING:
    from jinja2 import Template
REPORT_FILE = "report.html"
_TEMPLATE_FILE = "page.html"
_CHART_WIDTH = 4.8  # inches, at which text is legible on a phone


class _Figure(NamedTuple):
    """A picture, PNG in base64, or a chart, SVG."""

    caption: str
    png: str = ""
    svg: str = ""


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Writes `workdir/report.html` from the files of a run; any of them may still be missing.

    The page holds its images, so that it can be moved or sent alone. It shows:

    - as cards, the headline figures of `results.json` beside the paper's (`paper_nll`, or else
      `paper.nll` of the configuration) and what the configuration is expected to give
      (`paper.expected_nll`); before the evaluation the best validation ELBO;
    - every `*.png` in the directory, samples and real images first;
    - charts of `metrics.jsonl` and of `kl_per_layer`, drawn anew;
    - the other entries of `results.json`, in nats and bits per dimension, those of each class, and
      the commands, commits, computers and versions;
    - of `config.json` what differs from the defaults, then everything, however deeply nested.

    Returns:
        The path of the report.

    Raises:
        UserError: `workdir` has none of the three files, or one of them cannot be read.
    """
    workdir = Path(workdir)
    config = _read_json_object(workdir / CONFIG_FILE)
    results = _read_json_object(workdir / RESULTS_FILE)
    metrics = read_metrics(workdir)
    if config is None and results is None and not metrics:
        raise UserError(
            f"{workdir} is not the directory of a run: it has none of {CONFIG_FILE}, "
            f"{METRICS_FILE} and {RESULTS_FILE}. Give the workdir of a training run."
        )
    first, others = _pictures(workdir)
    tables = {
        "Results": sections.results_section(results, config),
        "Training": sections.training_section(metrics),
        "Settings": sections.config_section(config),
        "How it was made": sections.origin_section(results),
    }
    page = _template().render(
        name=workdir.resolve().name,
        subtitle=captions.subtitle(config, results),
        cards=cards(results, config, metrics),
        first=first,
        galleries={"Pictures": others, "Curves": _charts(metrics, results)}.items(),
        sections=tables.items(),
    )
    path = workdir / REPORT_FILE
    with open_atomically(path) as file:
        file.write(page.encode(errors="backslashreplace"))
    return path


def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(Path(__file__).with_name(_TEMPLATE_FILE).read_text("utf-8"))


def _pictures(workdir: Path) -> tuple[list[_Figure], list[_Figure]]:
    """Samples with real images, and all others; of charts the page has its own."""
    order = list(captions.PICTURES)
    paths = sorted(
        (path for path in workdir.glob("*.png") if path.name not in captions.CHARTS),
        key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name),
    )
    figures: tuple[list[_Figure], list[_Figure]] = ([], [])
    for path in paths:
        caption = captions.PICTURES.get(path.name, path.name)
        png = base64.b64encode(path.read_bytes()).decode()
        figures[path.name not in order[:2]].append(_Figure(caption, png=png))
    return figures


def _charts(
    metrics: Sequence[Mapping[str, Any]], results: Mapping[str, Any] | None
) -> list[_Figure]:
    figures = []
    if metrics:
        curves = canvas.as_svg(charts.draw_learning_curves(metrics, _CHART_WIDTH))
        figures.append(_Figure(captions.of_curves(metrics), svg=curves))
    kl, history = (results or {}).get("kl_per_layer"), charts.kl_history(metrics)
    if kl is None and history:  # the evaluation has not run
        kl = history[-1][1]
    if isinstance(kl, list) and charts.are_numbers(kl):
        history = [entry for entry in history if len(entry[1]) == len(kl)]
        chart = canvas.as_svg(charts.draw_kl_per_layer(kl, history, _CHART_WIDTH))
        figures.append(_Figure(captions.of_kl(kl), svg=chart))
    return figures


def _read_json_object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content
