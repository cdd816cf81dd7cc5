"""What every experiment shares. Other configurations import this one and override fields.

    python -m experiments.main --config=configs/base.py

trains the paper's MLP SeRe-VAE at its defaults on the embedded digits. docs/options.md has every
field with its default and its meaning; `sere_jax/config.py` and `experiments/settings/fields.py`
declare them.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.settings.fields import defaults
from sere_jax.rules import nearest

VARIANTS: dict[str, dict[str, Any]] = {"": {}}


def get_config(variant: str = "") -> ConfigDict:
    """The base configuration; it has no variants."""
    choose_variant(variant, VARIANTS)
    config = ConfigDict(defaults())
    # None would take any type.
    config.paper = ConfigDict({name: placeholder(float) for name in config.paper})
    return config.lock()


def choose_variant(variant: str, variants: Mapping[str, Any]) -> Any:
    """The overrides called `variant`.

    Raises:
        ValueError: there is no such variant; the message names those that exist.
    """
    if variant not in variants:
        known = ", ".join(name or "(none)" for name in variants)
        hint = nearest(variant, variants)
        raise ValueError(f"unknown variant {variant!r}; choose one of: {known}{hint}")
    return variants[variant]
