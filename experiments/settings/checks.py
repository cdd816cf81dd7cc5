"""Checks of an experiment's configuration, made before anything is loaded or compiled."""

import json
from collections.abc import Mapping
from typing import Any

from experiments.settings.durations import is_longer_than_zero
from experiments.settings.fields import FIELDS
from experiments.system.errors import UserError
from sere_jax.rules import nearest, refusal


def check_configuration(config: Any) -> None:
    """Checks every field outside `config.model`, which `sere_jax.create_model` checks.

    Raises:
        UserError: naming the field, its value and what is allowed.
    """
    fields = config.to_dict()
    for path, declared in FIELDS.items():
        if message := refusal(path, _get(fields, path), declared.rule):
            raise UserError(message)
    training = fields["training"]
    begins = training["importance_weighted_from"]
    if training["num_train_samples"] == 1 and is_longer_than_zero(begins):
        raise UserError(
            f"config.training.importance_weighted_from={begins!r} means nothing with "
            "config.training.num_train_samples=1; choose more samples, or set it to '0%'"
        )
    if training["weight_decay_on"] != "all" and not training["weight_decay"]:
        raise UserError(
            f"config.training.weight_decay_on={training['weight_decay_on']!r} means nothing with "
            "config.training.weight_decay=0.0; choose a decay, or set it to 'all'"
        )
    evaluation = fields["evaluation"]
    if evaluation["split"] != "test" and evaluation["test_elbo_every"]:
        raise UserError(
            f"config.evaluation.test_elbo_every={evaluation['test_elbo_every']!r} asks for the "
            f"test set, which config.evaluation.split={evaluation['split']!r} leaves alone; set it "
            "to '', or split='test'"
        )
    dataset = fields["dataset"]
    if dataset["condition"] == "affine" and not dataset["random_affine"]:
        raise UserError(
            "config.dataset.condition='affine' tells how images were turned, and "
            "config.dataset.random_affine=0.0 turns none; choose a share above 0, or condition=''"
        )
    for path in flat(fields):
        if path not in FIELDS and path.partition(".")[0] != "model":
            raise UserError(f"config.{path} is not a field{nearest(path, FIELDS)}")


def as_json(config: Any) -> dict[str, Any]:
    """The configuration as it comes back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def differences(ours: Mapping, theirs: Mapping, ignored: tuple[str, ...] = ()) -> list[str]:
    """Fields in which two configurations differ, as 'path: theirs -> ours', sorted by path.

    Args:
        ours: nested mapping of JSON values.
        theirs: the same.
        ignored: paths (with all below them) that do not count.
    """
    ours, theirs = flat(ours), flat(theirs)
    missing = "(missing)"
    return [
        f"{path}: {theirs.get(path, missing)!r} -> {ours.get(path, missing)!r}"
        for path in sorted({*ours, *theirs})
        if ours.get(path, missing) != theirs.get(path, missing)
        and not any(path == name or path.startswith(f"{name}.") for name in ignored)
    ]


def flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by their paths, 'section.field'."""
    values = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            values.update(flat(value, f"{prefix}{name}."))
        else:
            values[f"{prefix}{name}"] = value
    return values


def _get(config, path):
    value = config
    for name in path.split("."):
        if not isinstance(value, Mapping):
            raise UserError(f"config.{path} is missing: {value!r} stands where its section belongs")
        if name not in value:
            raise UserError(f"config.{path} is missing{nearest(name, value)}")
        value = value[name]
    return value
