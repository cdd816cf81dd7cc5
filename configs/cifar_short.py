"""Quick comparisons of variants of `cifar_checkerboard` at a small equal budget.

    python -m experiments.main --config=configs/cifar_short.py:tiles

The figures to compare are those of validation images. RESULTS.md has those of an earlier state.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base, cifar_checkerboard

VARIANTS: dict[str, dict[str, Any]] = {
    name: {} for name in cifar_checkerboard.VARIANTS if name != "small"
}


def get_config(variant: str = "") -> ConfigDict:
    """`cifar_checkerboard:VARIANT` with 24 channels and 600 updates of 32 images."""
    base.choose_variant(variant, VARIANTS)
    config = cifar_checkerboard.get_config(variant)
    config.model.hidden_size = 24
    training = config.training
    training.batch_size = 32
    training.num_steps = 600
    training.warmup = "50 steps"
    training.ema_decay = 0.99
    training.evaluate_every = "100%"
    training.checkpoint_every = "25%"
    config.evaluation.num_examples = 1000
    config.evaluation.num_importance_samples = 5
    return config
