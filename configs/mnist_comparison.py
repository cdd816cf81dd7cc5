"""The systems of the paper's MNIST table with as many parameters, chosen alike, at one budget.

    python -m experiments.main --config=configs/mnist_comparison.py:SYSTEM

A SYSTEM is a key of `VARIANTS`. Each has the 5.5 million parameters of the SeRe-VAE, within 3 %, by
the width of its hidden layers. RESULTS.md has the figures; the paper does not say how long it
trained.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base, mnist_iaf, mnist_ladder, mnist_mlp, mnist_relaxed_bernoulli

SYSTEMS: dict[str, tuple[Any, str, int]] = {  # configuration, its variant, width
    "sere_vae": (mnist_mlp, "", 200),
    "ladder": (mnist_ladder, "", 910),
    "ladder_iw10": (mnist_ladder, "iw10", 910),
    "sere_iaf": (mnist_iaf, "sere_iaf", 210),
    "iaf": (mnist_iaf, "iaf", 1040),
    "iaf_vae": (mnist_iaf, "iaf_vae", 700),
    "dlgm": (mnist_mlp, "dlgm", 225),
    "relaxed_bernoulli": (mnist_relaxed_bernoulli, "", 1020),
}
VARIANTS = {"": SYSTEMS["sere_vae"]} | SYSTEMS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a system, by default the SeRe-VAE's, with the common budget."""
    module, row, hidden_size = base.choose_variant(variant, VARIANTS)
    config = module.get_config(row)
    config.model.hidden_size = hidden_size
    config.training.num_epochs = 150
    return config
