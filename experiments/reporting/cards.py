"""The headline figures of a report, each a card with what it is to be compared with."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting.captions import LEAST_KL
from experiments.reporting.sections import paper_figure
from experiments.reporting.text import (
    bits,
    command,
    count,
    decimal,
    duration,
    is_number,
    nats,
    stderr,
)
from experiments.run_folder.configuration import FIELDS_WITHOUT_EFFECT

_WITHOUT_EFFECT = tuple(f"--config.{field}" for field in FIELDS_WITHOUT_EFFECT)


class Card(NamedTuple):
    """A figure with its name, its unit and notes below it."""

    label: str
    value: str
    unit: str = ""
    notes: Sequence[str] = ()


def cards(
    results: Mapping[str, Any] | None,
    config: Mapping[str, Any] | None,
    metrics: Sequence[Mapping[str, Any]],
) -> list[Card]:
    """The first one is the headline. Before the evaluation it is of the validation images."""
    if results is None:
        return _while_training(config, metrics)
    nll, error = results.get("nll"), results.get("nll_stderr")
    split, shown = results.get("split", "test"), []
    if nll is not None:
        notes = [f"± {stderr(error)}, standard error"] if error is not None else []
        is_whole = split == "test" and not results.get("evaluation", {}).get("num_examples")
        notes += _compared(nll if is_whole else None, results, config)
        shown.append(Card(f"−log p(x), {split} set", decimal(nll), "nats", notes))
    for key, label, show, unit in (
        ("elbo", f"ELBO, {split} set", decimal, "nats"),
        ("bits_per_dim", "Bits per dimension", bits, ""),
    ):
        if results.get(key) is not None:
            shown.append(Card(label, show(results[key]), unit))
    shown += _layers(results.get("kl_per_layer"))
    if results.get("num_params") is not None:
        shown.append(Card("Parameters", count(results["num_params"])))
    if results.get("train_seconds") is not None:
        shown.append(Card("Training time", duration(results["train_seconds"])))
    return shown


def _while_training(
    config: Mapping[str, Any] | None, metrics: Sequence[Mapping[str, Any]]
) -> list[Card]:
    elbos = [
        record["elbo"]
        for record in metrics
        if record.get("split") == "validation" and is_number(record.get("elbo"))
    ]
    if not elbos:
        return []
    notes = [f"−log p(x): {note}" for note in _compared(None, None, config)]
    return [Card("Best ELBO so far, validation", decimal(max(elbos)), "nats", notes)]


def _compared(
    nll: Any, results: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> list[str]:
    paper = (config or {}).get("paper")
    expected = paper.get("expected_nll") if isinstance(paper, Mapping) else None
    without = ", without its overrides" if _is_overridden(results or {}) else ""
    return [
        f"{name} {decimal(figure)}{_difference(nll, figure)}{note}"
        for name, figure, note in (
            ("paper", paper_figure(results, config), ""),
            ("expected", expected, without),
        )
        if figure is not None
    ]


def _difference(nll: Any, figure: Any) -> str:
    return f" ({nll - figure:+.2f})" if is_number(nll) and is_number(figure) else ""


def _is_overridden(results: Mapping[str, Any]) -> bool:
    """Whether the command that trained changed the configuration that it names."""
    try:
        words = shlex.split(command(results.get("command", "")))
    except ValueError:
        return False
    return any(w.startswith("--config.") and not w.startswith(_WITHOUT_EFFECT) for w in words)


def _layers(kl: Any) -> list[Card]:
    if not isinstance(kl, list) or len(kl) < 2 or not all(map(is_number, kl)):
        return []
    in_use = sum(value >= LEAST_KL for value in kl)
    return [Card("Layers in use", f"{in_use} of {len(kl)}", "", [f"{nats(sum(kl))} in all"])]
