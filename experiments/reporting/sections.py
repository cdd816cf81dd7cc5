"""What the tables of a report say: results, origin, training, settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting.text import (
    NOT_AVAILABLE,
    bits,
    command,
    count,
    decimal,
    duration,
    early_stop,
    extensions,
    hardware,
    is_number,
    nats,
    plain,
    rounded,
    stderr,
    versions,
)
from experiments.run_folder.configuration import CONFIG_FILE
from experiments.settings.fields import defaults


class Cell(NamedTuple):
    """What stands beside a label: "text unit (aside)"; kind "strong" or "code" styles the text."""

    text: str
    kind: str = ""
    unit: str = ""
    aside: str = ""


Rows = Sequence[tuple[str, Cell]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A notice, a table, and sections inside this one by their names, open or folded."""

    notice: str = ""
    rows: Rows = ()
    blocks: Sequence[tuple[str, Section]] = ()
    is_open: bool = True


def results_section(results: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> Section:
    """All figures of the evaluation."""
    paper_nll = paper_figure(results, config)
    if results is None:
        rows = [("Negative log-likelihood in the paper", Cell(nats(paper_nll)))]
        return Section("The final evaluation has not run.", rows if paper_nll is not None else ())

    others = dict(results)
    split = others.pop("split", "test")
    for shown_elsewhere in ("paper_nll", "kl_per_layer", "evaluation", *_COMPUTERS, *_ORIGIN):
        others.pop(shown_elsewhere, None)
    nll, nll_stderr = others.pop("nll", None), others.pop("nll_stderr", None)
    rows = [
        (f"Negative log-likelihood of the {split} set", _nll_cell(nll, nll_stderr, paper_nll)),
        *((label.format(split=split), cell) for label, cell in _named(others, _RESULTS)),
    ]
    by_class = [others.pop(f"{name}_by_class", None) for name in ("nll", "elbo")]
    others = {key: value for key, value in others.items() if key not in _RESULTS}
    rows += [(key, Cell(plain(rounded(value)))) for key, value in others.items()]
    return Section(rows=rows, blocks=_by_class(*by_class))


def origin_section(results: Mapping[str, Any] | None) -> Section:
    """By which commands, commits, computers and versions, and when."""
    results = results or {}
    rows = _named(results, _ORIGIN)
    known = {name: results[name] for name in _COMPUTERS if isinstance(results.get(name), Mapping)}
    if len(known) == 2 and len({json.dumps(c, sort_keys=True) for c in known.values()}) == 1:
        known = {"": known["computer"]}
    for name, computer in known.items():
        of = _COMPUTERS.get(name, "")
        rows += [
            (f"Hardware{of}", Cell(hardware(computer))),
            (f"Versions{of}", Cell(versions(computer))),
            (f"Date{of}", Cell(plain(computer.get("date")))),
        ]
    return Section("" if rows else "Nothing is recorded.", rows)


def _named(values: Mapping[str, Any], names: Mapping[str, tuple[str, Callable]]) -> list:
    rows = []
    for key, (label, shown) in names.items():
        if key in values:
            text = NOT_AVAILABLE if values[key] is None else shown(values[key])
            rows.append((label, Cell(text, "code" if shown in (str, command) else "")))
    return rows


def _by_class(nlls: Any, elbos: Any) -> Sequence[tuple[str, Section]]:
    """A table with a row for each class; nothing, if the run has none."""
    if not (isinstance(nlls, list) and isinstance(elbos, list)):
        return ()
    rows = [
        (
            f"class {label}",
            Cell(NOT_AVAILABLE) if nll is None else Cell(nats(nll), aside=f"ELBO {nats(elbo)}"),
        )
        for label, (nll, elbo) in enumerate(zip(nlls, elbos, strict=False))
    ]
    return [("Negative log-likelihood by class", Section(rows=rows))]


def paper_figure(results: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> Any:
    """The paper's -log p(x) in nats; None if it has none."""
    paper_nll = (results or {}).get("paper_nll")
    if paper_nll is not None:
        return paper_nll
    paper = (config or {}).get("paper")
    return paper.get("nll") if isinstance(paper, Mapping) else None


def _nll_cell(nll: Any, error: Any, paper_nll: Any) -> Cell:
    aside = ""
    if paper_nll is not None:
        aside = f"paper: {nats(paper_nll)}"
        if is_number(nll) and is_number(paper_nll):
            aside += f", difference {nll - paper_nll:+.2f}"
    if nll is None:
        return Cell(NOT_AVAILABLE, aside=aside)
    return Cell(with_error(nll, error), "strong", " nats", aside)


def with_error(value: Any, error: Any) -> str:
    """ "value ± standard error", without units."""
    return decimal(value) + ("" if error is None else f" ± {stderr(error)}")


def training_section(metrics: Sequence[Mapping[str, Any]]) -> Section:
    """How far it came, and how fast."""
    if not metrics:
        return Section("No metrics have been logged.")
    last = max(metrics, key=lambda record: record["step"])
    text = f"{count(last['step'])} (epoch {decimal(last['epoch'])})"
    rows = [("Last logged step", Cell(text))]
    validated = [
        record
        for record in metrics
        if record["split"] == "validation" and is_number(record.get("elbo"))
    ]
    if validated:
        best = max(validated, key=lambda record: record["elbo"])
        cell = Cell(nats(best["elbo"]), aside=f"at step {count(best['step'])}")
        rows.append(("Best validation ELBO", cell))
    trained = [record for record in metrics if record["split"] == "train"]
    for key, label, shown in (
        ("elbo", "Last training ELBO", nats),
        ("bits_per_dim", "The same in bits per dimension", bits),
        ("images_per_second", "Images per second", count),
        ("skipped_steps", "Skipped steps", count),
    ):
        value = trained[-1].get(key) if trained else None
        if value is not None:
            rows.append((label, Cell(shown(value))))
    return Section(rows=rows)


def config_section(config: Mapping[str, Any] | None) -> Section:
    """What differs from the defaults, then all settings, folded."""
    if config is None:
        return Section(f"{CONFIG_FILE} is missing.")
    rows = _changed(config, json.loads(json.dumps(defaults())))
    notice = "What differs from the defaults:" if rows else "All settings are at their defaults."
    everything = dataclasses.replace(_nested(config), is_open=False)
    return Section(notice, rows, [("All settings", everything)])


def _changed(config: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> list:
    """Rows of the fields that have another value; the cards compare with those of `paper`."""
    rows: list[tuple[str, Cell]] = []
    for key, value in config.items():
        if prefix + key == "paper":
            continue
        other = default.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            rows += _changed(value, other, f"{prefix}{key}.")
        elif key not in default:
            rows.append((prefix + key, Cell(plain(value))))
        elif value != other:
            rows.append((prefix + key, Cell(plain(value), aside=f"default {plain(other)}")))
    return rows


def _nested(entries: Mapping[str, Any]) -> Section:
    """Table of the plain entries, then a collapsible block for each entry that is nested."""
    nested = {key: value for key, value in entries.items() if _is_nested(value)}
    return Section(
        rows=[(key, Cell(plain(entries[key]))) for key in entries if key not in nested],
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


# How entries of results.json are told, in this order.
_RESULTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "elbo": ("ELBO of the {split} set", nats),
    "elbo_stderr": ("Standard error of the ELBO", nats),
    "bits_per_dim": ("Bits per dimension of the log-likelihood", bits),
    "elbo_bits_per_dim": ("Bits per dimension of the ELBO", bits),
    "num_importance_samples": ("Importance samples per example", count),
    "num_examples": ("Images of the {split} set", count),
    "dataset": ("Data set", plain),
    "validation_elbo": ("Validation ELBO", nats),
    "step": ("Step of the weights evaluated", count),
    "epoch": ("Epoch of the weights evaluated", decimal),
    "num_params": ("Parameters", count),
    "train_seconds": ("Training time", duration),
    "continuations": ("Trained for longer", extensions),
    "stopped_early": ("Stopped early", early_stop),
}
_ORIGIN: dict[str, tuple[str, Callable[[Any], str]]] = {
    "command": ("Command of the training", command),
    "git_commit": ("Git commit of the training", str),
    "evaluation_command": ("Command of the evaluation", command),
    "evaluation_git_commit": ("Git commit of the evaluation", str),
}
_COMPUTERS = {"computer": " of the training", "evaluation_computer": " of the evaluation"}
