"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from experiments.run_folder import RESULTS_FILE
from experiments.run_folder.configuration import CONFIG_FILE
from experiments.run_folder.metrics import METRICS_FILE, read_metrics
from experiments.system.errors import UserError
from experiments.system.files import open_atomically

REPORT_FILE = "report.html"

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


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Writes `workdir/report.html` from the files of a run; any of them may still be missing.

    The page holds its images, so that it can be moved or sent alone. It shows:

    - the results in `results.json`: `nll` and `nll_stderr` (nats), `elbo` (nats),
      `bits_per_dim`, `num_importance_samples`, `num_examples`, `step`, `num_params`,
      `train_seconds`, `git_commit` and `command` under their names in full, beside `paper_nll`
      or else `paper.nll` of the configuration if not null, then all other entries but those
      that a figure or the configuration shows (`kl_per_layer`, `evaluation`);
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
    page = _PAGE.substitute(
        title=escape(f"SeRe-VAE: {workdir.resolve().name}"),
        results=_results_section(results, config),
        training=_training_section(metrics),
        figures=_figures_section(workdir),
        config=_config_section(config),
    )
    path = workdir / REPORT_FILE
    with open_atomically(path) as file:
        file.write(page.encode(errors="backslashreplace"))
    return path


def _results_section(results: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> str:
    paper_nll = _paper_nll(results, config)
    if results is None:
        text = '<p class="notice">The final evaluation has not run.</p>'
        if paper_nll is not None:
            text += _table([("Negative log-likelihood in the paper", _nats(paper_nll))])
        return text

    others = dict(results)
    for shown_elsewhere in ("paper_nll", "kl_per_layer", "evaluation"):
        others.pop(shown_elsewhere, None)
    nll, nll_stderr = others.pop("nll", None), others.pop("nll_stderr", None)
    rows = [("Negative log-likelihood of the test set", _nll_cell(nll, nll_stderr, paper_nll))]
    for key, label, cell in (
        ("elbo", "ELBO of the test set", _nats),
        ("elbo_stderr", "Standard error of the ELBO", _nats),
        ("bits_per_dim", "Bits per dimension of the log-likelihood", _bits),
        ("elbo_bits_per_dim", "Bits per dimension of the ELBO", _bits),
        ("num_importance_samples", "Importance samples per example", _count),
        ("num_examples", "Test images", _count),
        ("dataset", "Data set", escape),
        ("validation_elbo", "Validation ELBO", _nats),
        ("step", "Step of the weights evaluated", _count),
        ("epoch", "Epoch of the weights evaluated", _decimal),
        ("num_params", "Parameters", _count),
        ("train_seconds", "Training time", _duration),
        ("git_commit", "Git commit of the training", _code),
        ("command", "Command of the training", _command),
        ("evaluation_git_commit", "Git commit of the evaluation", _code),
        ("evaluation_command", "Command of the evaluation", _command),
    ):
        if key in others:
            value = others.pop(key)
            rows.append((label, _NOT_AVAILABLE if value is None else cell(value)))
    rows += [(escape(key), _value(_rounded(value))) for key, value in others.items()]
    return _table(rows)


def _paper_nll(results: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> Any:
    paper_nll = (results or {}).get("paper_nll")
    if paper_nll is not None:
        return paper_nll
    paper = (config or {}).get("paper")
    return paper.get("nll") if isinstance(paper, Mapping) else None


def _nll_cell(nll: Any, stderr: Any, paper_nll: Any) -> str:
    error = "" if stderr is None else f" ± {_stderr(stderr)}"
    cell = _NOT_AVAILABLE if nll is None else f"<strong>{_decimal(nll)}{error}</strong> nats"
    if paper_nll is not None:
        comparison = f"paper: {_nats(paper_nll)}"
        if _is_number(nll) and _is_number(paper_nll):
            comparison += f", difference {nll - paper_nll:+.2f}"
        cell += f' <span class="aside">{comparison}</span>'
    return cell


def _training_section(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return '<p class="notice">No metrics have been logged.</p>'
    last = max(metrics, key=lambda record: record["step"])
    rows = [("Last logged step", f"{_count(last['step'])} (epoch {_decimal(last['epoch'])})")]
    validated = [
        record
        for record in metrics
        if record["split"] == "validation" and _is_number(record.get("elbo"))
    ]
    if validated:
        best = max(validated, key=lambda record: record["elbo"])
        at_step = f'<span class="aside">at step {_count(best["step"])}</span>'
        rows.append(("Best validation ELBO", f"{_nats(best['elbo'])} {at_step}"))
    trained = [record for record in metrics if record["split"] == "train"]
    if trained:
        for key, label in (
            ("elbo", "Last training ELBO"),
            ("bits_per_dim", "The same in bits per dimension"),
            ("images_per_second", "Images per second"),
            ("skipped_steps", "Skipped steps"),
        ):
            value = trained[-1].get(key)
            if value is not None:
                cell = {"elbo": _nats, "bits_per_dim": _bits}.get(key, _count)
                rows.append((label, cell(value)))
    return _table(rows)


def _figures_section(workdir: Path) -> str:
    order = list(_CAPTIONS)
    paths = sorted(
        workdir.glob("*.png"),
        key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name),
    )
    if not paths:
        return '<p class="notice">No figures have been drawn.</p>'
    return "\n".join(_figure(path) for path in paths)


def _figure(path: Path) -> str:
    caption = escape(_CAPTIONS.get(path.name, path.name))
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _config_section(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return f'<p class="notice">{CONFIG_FILE} is missing.</p>'
    return _nested_table(config)


def _nested_table(entries: Mapping[str, Any]) -> str:
    """Table of the plain entries, then a collapsible block for each entry that is nested."""
    nested = {key: value for key, value in entries.items() if _is_nested(value)}
    plain = [(escape(key), _value(value)) for key, value in entries.items() if key not in nested]
    blocks = [
        f"<details open><summary>{escape(key)}</summary>{_nested_table(_keyed(value))}</details>"
        for key, value in nested.items()
    ]
    return "\n".join([_table(plain) if plain else "", *blocks])


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value)


def _keyed(value: Mapping[str, Any] | list[Any]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return {str(index): item for index, item in enumerate(value)}


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "\n".join(
        f'<tr><th scope="row">{label}</th><td>{cell}</td></tr>' for label, cell in rows
    )
    return f"<table>\n{body}\n</table>"


def _value(value: Any) -> str:
    if isinstance(value, str) and value:
        return escape(value)
    if isinstance(value, list) and value:
        return ", ".join(_value(item) for item in value)
    return escape(json.dumps(value))


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


def _code(value: Any) -> str:
    return f"<code>{escape(str(value))}</code>"


def _command(value: Any) -> str:
    words = shlex.join(map(str, value)) if isinstance(value, list) else str(value)
    # Each word is a box of its own, as browsers break lines after the hyphens of a flag.
    return "<code>" + " ".join(f"<span>{escape(word)}</span>" for word in words.split()) + "</code>"


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


_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  --page: #f5f7fa; --card: #ffffff; --text: #1f2933; --muted: #616e7c; --line: #e4e7eb;
  --accent: #2b5f9e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --card: #1d232a; --text: #e4e7eb; --muted: #9aa5b1; --line: #323a44;
    --accent: #8cb8ea;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif;
}
main { max-width: 60rem; margin: 0 auto; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
section {
  margin: 1.25rem 0; padding: 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem;
}
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem .4rem 0; text-align: left; vertical-align: top; }
tr + tr > * { border-top: 1px solid var(--line); }
th { width: 18rem; font-weight: normal; color: var(--muted); overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; }
strong { font-size: 1.35rem; color: var(--accent); }
.aside { color: var(--muted); white-space: nowrap; }
.aside::before { content: "("; }
.aside::after { content: ")"; }
.notice { margin: 0; color: var(--muted); }
.notice + table { margin-top: .75rem; }
code { font: .875em/1.5 ui-monospace, monospace; }
code span { display: inline-block; max-width: 100%; word-break: break-all; }
figure { margin: 0 0 2rem; }
figure:last-child { margin-bottom: 0; }
img {
  display: block; width: 100%; max-width: 50rem; height: auto; margin: 0 auto;
  border-radius: .4rem;
}
figcaption { margin-top: .5rem; text-align: center; color: var(--muted); }
details { margin-top: .75rem; padding-left: .9rem; border-left: 2px solid var(--line); }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 36rem) {
  section { padding: 1rem; }
  th { width: 42%; }
  .aside { display: block; white-space: normal; }
}
</style>
</head>
<body>
<main>
<h1>$title</h1>
<section>
<h2>Results</h2>
$results
</section>
<section>
<h2>Training</h2>
$training
</section>
<section>
<h2>Figures</h2>
$figures
</section>
<section>
<h2>Configuration</h2>
$config
</section>
</main>
</body>
</html>
""")
