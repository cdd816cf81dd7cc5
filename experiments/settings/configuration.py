"""Checks of an experiment's configuration, made before anything is loaded or compiled."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from experiments.settings.schedules import duration_in_steps, is_longer_than_zero
from experiments.system.errors import UserError
from sere_jax.config import nearest


def _is_int(value):
    # Steps, samples and images are counted by 32-bit integers on the device.
    return isinstance(value, int) and not isinstance(value, bool) and value < LARGEST


def _is_number(value):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < INFINITY  # and not NaN


def _is_seed(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


LARGEST = 2**31
INFINITY = 2.0**128  # of float32
SMALLEST = 2.0**-126  # above 0
NEAREST_TO_ONE = 1 - 2.0**-24  # below 1

Rule = tuple[str, Callable[[Any], bool]]
POSITIVE_INT: Rule = ("an integer from 1 to 2^31 - 1", lambda v: _is_int(v) and v >= 1)
NATURAL: Rule = ("an integer from 0 to 2^31 - 1", lambda v: _is_int(v) and v >= 0)
POSITIVE: Rule = (
    "a number above 0, of at least 2^-126",
    lambda v: _is_number(v) and v >= SMALLEST,
)
NOT_NEGATIVE: Rule = (
    "a number of at least 0, and if above 0 of at least 2^-126",
    lambda v: v == 0 and _is_number(v) or POSITIVE[1](v),
)
FRACTION: Rule = ("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
BELOW_ONE: Rule = (
    "a number from 0 to below 1, at most 1 - 2^-24 in float32",
    lambda v: _is_number(v) and 0 <= v <= NEAREST_TO_ONE,
)
BOOLEAN: Rule = ("True or False", lambda v: isinstance(v, bool))
SEED: Rule = ("an integer from 0 to 2^32 - 1", _is_seed)
TEXT: Rule = ("a text", lambda v: isinstance(v, str))
NUMBER_OR_NONE: Rule = ("a number or None", lambda v: v is None or _is_number(v))
VALIDATION_SIZE: Rule = (
    "a number of examples above 0, or a fraction between 0 and 1",
    lambda v: _is_number(v) and v > 0 and (v < 1 or float(v).is_integer()),
)


def one_of(*choices: str) -> Rule:
    """The rule that a value is one of `choices`."""
    return (f"one of {', '.join(choices)}", lambda v: v in choices)


def _is_duration(value):
    try:
        duration_in_steps("duration", value, steps_per_epoch=1, total_steps=1)
    except UserError:
        return False
    return True


DURATION: Rule = ("a duration: '500 steps', '1.5 epochs' or '10%'", _is_duration)
INTERVAL: Rule = (
    "a duration above 0: '500 steps', '1.5 epochs' or '10%'",
    lambda v: _is_duration(v) and is_longer_than_zero(v),
)
INTERVAL_OR_NONE: Rule = (f"'' (never), or {INTERVAL[0]}", lambda v: v == "" or INTERVAL[1](v))

RULES: dict[str, Rule] = {
    "seed": SEED,
    "dataset.name": TEXT,
    "dataset.data_dir": TEXT,
    "dataset.path": TEXT,
    "dataset.validation_size": VALIDATION_SIZE,
    "dataset.num_train_examples": NATURAL,
    "dataset.image_size": POSITIVE_INT,
    "dataset.horizontal_flip": BOOLEAN,
    "dataset.random_affine": FRACTION,
    "dataset.random_affine_until": DURATION,
    "dataset.affine_contrast": POSITIVE,
    "dataset.download": BOOLEAN,
    "training.initial_weights": TEXT,
    "training.batch_size": POSITIVE_INT,
    "training.num_epochs": POSITIVE_INT,
    "training.num_steps": NATURAL,
    "training.num_train_samples": POSITIVE_INT,
    "training.importance_weighted_from": DURATION,
    "training.optimizer": one_of("adam", "adamax"),
    "training.weight_decay": NOT_NEGATIVE,
    "training.learning_rate": POSITIVE,
    "training.learning_rate_schedule": one_of("constant", "linear", "cosine"),
    "training.final_learning_rate_factor": FRACTION,
    "training.warmup": DURATION,
    "training.kl_weight_start": FRACTION,
    "training.kl_warmup": DURATION,
    "training.max_gradient_norm": NOT_NEGATIVE,
    "training.ema_decay": BELOW_ONE,
    "training.max_consecutive_skips": POSITIVE_INT,
    "training.steps_per_dispatch": POSITIVE_INT,
    "training.evaluate_every": INTERVAL,
    "training.checkpoint_every": INTERVAL,
    "training.keep_checkpoints": POSITIVE_INT,
    "evaluation.num_importance_samples": POSITIVE_INT,
    "evaluation.batch_size": POSITIVE_INT,
    "evaluation.num_examples": NATURAL,
    "evaluation.test_elbo_every": INTERVAL_OR_NONE,
    "evaluation.checkpoint": one_of("best", "last"),
    "sampling.num_images": POSITIVE_INT,
    "sampling.seed": SEED,
    "paper.nll": NUMBER_OR_NONE,
}


def check_configuration(config: Any) -> None:
    """Checks every field outside `config.model`, which `sere_jax.create_model` checks.

    Raises:
        UserError: naming the field, its value and what is allowed.
    """
    fields = config.to_dict()
    for path, (allowed, is_valid) in RULES.items():
        value = _get(fields, path)
        if not is_valid(value):
            raise UserError(f"config.{path}={value!r} must be {allowed}")
    training = fields["training"]
    begins = training["importance_weighted_from"]
    if training["num_train_samples"] == 1 and is_longer_than_zero(begins):
        raise UserError(
            f"config.training.importance_weighted_from={begins!r} means nothing with "
            "config.training.num_train_samples=1; choose more samples, or set it to '0%'"
        )
    unknown = [
        path for path in _flat(fields) if path not in RULES and path.partition(".")[0] != "model"
    ]
    if unknown:
        raise UserError(f"config.{unknown[0]} is not a field{nearest(unknown[0], RULES)}")


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
    ours, theirs = _flat(ours), _flat(theirs)
    missing = "(missing)"
    return [
        f"{path}: {theirs.get(path, missing)!r} -> {ours.get(path, missing)!r}"
        for path in sorted({*ours, *theirs})
        if ours.get(path, missing) != theirs.get(path, missing)
        and not any(path == name or path.startswith(f"{name}.") for name in ignored)
    ]


def _flat(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _get(config, path):
    value = config
    for name in path.split("."):
        if not isinstance(value, Mapping):
            raise UserError(f"config.{path} is missing: {value!r} stands where its section belongs")
        if name not in value:
            raise UserError(f"config.{path} is missing{nearest(name, value)}")
        value = value[name]
    return value
