"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.run_folder import RESULTS_FILE
from experiments.run_folder.configuration import CONFIG_FILE
from experiments.run_folder.metrics import METRICS_FILE, read_metrics
from experiments.system.errors import UserError
from experiments.system.files import open_atomically

if TYPE_CHECKING:
    from jinja2 import Template
REPORT_FILE = "report.html"
_TEMPLATE_FILE = "page.html"

_NOT_AVAILABLE = "not available"
_CAPTIONS = {
    "samples.png": "Samples of the model",
    "build_up.png": "Samples of the model after each layer",
    "reconstructions.png": "Images of the test set and their reconstructions",
    "residual_layers.png": "Reconstructions with and without the data layers' residual δγ",
    "interpolation.png": "From the codes of one test image to those of another, row by row",
    "learning_curves.png": "ELBO of training and validation, and the schedules",
    "kl_per_layer.png": "Information that each layer of latent variables carries",
}


class _Cell(NamedTuple):
    """What stands beside a label: "text unit (aside)"; kind "strong" or "code" styles the text."""

    text: str
    kind: str = ""
    unit: str = ""
    aside: str = ""


_Rows = Sequence[tuple[str, _Cell]]


@dataclasses.dataclass(frozen=True)
class _Section:
    """A notice, a table, sections inside this one by their names, and figures by captions."""

    notice: str = ""
    rows: _Rows = ()
    blocks: Sequence[tuple[str, _Section]] = ()
    figures: Sequence[tuple[str, str]] = ()  # PNG in base64


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Writes `workdir/report.html` from the files of a run; any of them may still be missing.

    The page holds its images, so that it can be moved or sent alone. It shows:

    - the results in `results.json`: `nll` and `nll_stderr` (nats), `elbo` (nats),
      `bits_per_dim`, `num_importance_samples`, `num_examples`, `step`, `num_params`,
      `train_seconds`, `git_commit` and `command` under their names in full, beside `paper_nll`
      or else `paper.nll` of the configuration if not null, then all other entries but those
      that a figure or the configuration shows (`kl_per_layer`, `evaluation`), and a table of
      `nll_by_class` and `elbo_by_class`;
    - how far training came, from `metrics.jsonl`;
    - every `*.png` in the directory;
    - `config.json`, however deeply nested.

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
    sections = {
        "Results": _results_section(results, config),
        "Training": _training_section(metrics),
        "Figures": _figures_section(workdir),
        "Configuration": _config_section(config),
    }
    page = _template().render(
        title=f"SeRe-VAE: {workdir.resolve().name}", sections=sections.items()
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


def _results_section(
    results: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> _Section:
    paper_nll = _paper_nll(results, config)
    if results is None:
        rows = [("Negative log-likelihood in the paper", _Cell(_nats(paper_nll)))]
        return _Section("The final evaluation has not run.", rows if paper_nll is not None else ())

    others = dict(results)
    for shown_elsewhere in ("paper_nll", "kl_per_layer", "evaluation"):
        others.pop(shown_elsewhere, None)
    nll, nll_stderr = others.pop("nll", None), others.pop("nll_stderr", None)
    rows = [("Negative log-likelihood of the test set", _nll_cell(nll, nll_stderr, paper_nll))]
    for key, (label, shown) in _RESULTS.items():
        if key in others:
            value = others.pop(key)
            text = _NOT_AVAILABLE if value is None else shown(value)
            rows.append((label, _Cell(text, "code" if shown in (str, _command) else "")))
    by_class = [others.pop(f"{name}_by_class", None) for name in ("nll", "elbo")]
    rows += [(key, _Cell(_value(_rounded(value)))) for key, value in others.items()]
    return _Section(rows=rows, blocks=_by_class(*by_class))


def _by_class(nlls: Any, elbos: Any) -> Sequence[tuple[str, _Section]]:
    """A table with a row for each class; nothing, if the run has none."""
    if not (isinstance(nlls, list) and isinstance(elbos, list)):
        return ()
    rows = [
        (
            f"class {label}",
            _Cell(_NOT_AVAILABLE)
            if nll is None
            else _Cell(_nats(nll), aside=f"ELBO {_nats(elbo)}"),
        )
        for label, (nll, elbo) in enumerate(zip(nlls, elbos, strict=False))
    ]
    return [("Negative log-likelihood by class", _Section(rows=rows))]


def _paper_nll(results: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> Any:
    paper_nll = (results or {}).get("paper_nll")
    if paper_nll is not None:
        return paper_nll
    paper = (config or {}).get("paper")
    return paper.get("nll") if isinstance(paper, Mapping) else None


def _nll_cell(nll: Any, stderr: Any, paper_nll: Any) -> _Cell:
    aside = ""
    if paper_nll is not None:
        aside = f"paper: {_nats(paper_nll)}"
        if _is_number(nll) and _is_number(paper_nll):
            aside += f", difference {nll - paper_nll:+.2f}"
    if nll is None:
        return _Cell(_NOT_AVAILABLE, aside=aside)
    error = "" if stderr is None else f" ± {_stderr(stderr)}"
    return _Cell(f"{_decimal(nll)}{error}", "strong", " nats", aside)


def _training_section(metrics: Sequence[Mapping[str, Any]]) -> _Section:
    if not metrics:
        return _Section("No metrics have been logged.")
    last = max(metrics, key=lambda record: record["step"])
    text = f"{_count(last['step'])} (epoch {_decimal(last['epoch'])})"
    rows = [("Last logged step", _Cell(text))]
    validated = [
        record
        for record in metrics
        if record["split"] == "validation" and _is_number(record.get("elbo"))
    ]
    if validated:
        best = max(validated, key=lambda record: record["elbo"])
        cell = _Cell(_nats(best["elbo"]), aside=f"at step {_count(best['step'])}")
        rows.append(("Best validation ELBO", cell))
    trained = [record for record in metrics if record["split"] == "train"]
    for key, label, shown in (
        ("elbo", "Last training ELBO", _nats),
        ("bits_per_dim", "The same in bits per dimension", _bits),
        ("images_per_second", "Images per second", _count),
        ("skipped_steps", "Skipped steps", _count),
    ):
        value = trained[-1].get(key) if trained else None
        if value is not None:
            rows.append((label, _Cell(shown(value))))
    return _Section(rows=rows)


def _figures_section(workdir: Path) -> _Section:
    order = list(_CAPTIONS)
    paths = sorted(
        workdir.glob("*.png"),
        key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name),
    )
    figures = [
        (_CAPTIONS.get(path.name, path.name), base64.b64encode(path.read_bytes()).decode())
        for path in paths
    ]
    return _Section("" if figures else "No figures have been drawn.", figures=figures)


def _config_section(config: Mapping[str, Any] | None) -> _Section:
    return _Section(f"{CONFIG_FILE} is missing.") if config is None else _nested(config)


def _nested(entries: Mapping[str, Any]) -> _Section:
    """Table of the plain entries, then a collapsible block for each entry that is nested."""
    nested = {key: value for key, value in entries.items() if _is_nested(value)}
    return _Section(
        rows=[(key, _Cell(_value(entries[key]))) for key in entries if key not in nested],
        blocks=[(key, _nested(_keyed(value))) for key, value in nested.items()],
    )


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value)


def _keyed(value: Mapping[str, Any] | list[Any]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return {str(index): item for index, item in enumerate(value)}


def _value(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value:
        return ", ".join(_value(item) for item in value)
    return json.dumps(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _decimal(value: Any) -> str:
    return f"{value:,.2f}" if _is_number(value) else _value(value)


def _stderr(value: Any) -> str:
    return f"{value:.1g}" if _is_number(value) and 0 < value < 0.01 else _decimal(value)


def _bits(value: Any) -> str:
    return f"{value:.4f}" if _is_number(value) else _value(value)


def _nats(value: Any) -> str:
    return f"{_decimal(value)} nats"


def _count(value: Any) -> str:
    return f"{value:,.0f}" if _is_number(value) else _value(value)


def _command(value: Any) -> str:
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(value: Any) -> str:
    if not _is_number(value):
        return _value(value)
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


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


# How entries of results.json are told, in this order.
_RESULTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "elbo": ("ELBO of the test set", _nats),
    "elbo_stderr": ("Standard error of the ELBO", _nats),
    "bits_per_dim": ("Bits per dimension of the log-likelihood", _bits),
    "elbo_bits_per_dim": ("Bits per dimension of the ELBO", _bits),
    "num_importance_samples": ("Importance samples per example", _count),
    "num_examples": ("Test images", _count),
    "dataset": ("Data set", _value),
    "validation_elbo": ("Validation ELBO", _nats),
    "step": ("Step of the weights evaluated", _count),
    "epoch": ("Epoch of the weights evaluated", _decimal),
    "num_params": ("Parameters", _count),
    "train_seconds": ("Training time", _duration),
    "git_commit": ("Git commit of the training", str),
    "command": ("Command of the training", _command),
    "evaluation_git_commit": ("Git commit of the evaluation", str),
    "evaluation_command": ("Command of the evaluation", _command),
}
