"""Single options beyond the paper, each beside the MLP SeRe-VAE at one budget of 60 epochs.

    python -m experiments.main --config=configs/mnist_options.py:ROW

A ROW is a key of `VARIANTS`. RESULTS.md has the figures.
"""

from ml_collections import ConfigDict

from configs import base, mnist_mlp

REFERENCE = "sere_vae"
OPTIONS = {
    "all_blocks": "data layers and priors see all previous blocks",
    "data_to_prior": "priors see the previous block",
    "data_context10": "data layers see all previous blocks",
    "data_context2": "data layers see the two previous blocks",
    "context2": "all layers see the two previous codes",
    "context4": "all layers see the four previous codes",
    "importance_weighted5": "importance-weighted bound of 5 samples",
    "shared_encoder": "one encoder, refined from the last layer to the first",
    "unequal_latents": "20 codes in the first layer to 6 in the last",
    "carry": "codes are handed on from the start",
}
VARIANTS = {"": "", REFERENCE: ""} | {name: name for name in OPTIONS}


def get_config(variant: str = "") -> ConfigDict:
    """`mnist_mlp` with one option, by default none, and the common budget."""
    config = mnist_mlp.get_config(base.choose_variant(variant, VARIANTS))
    config.training.num_epochs = 60
    config.paper.expected_nll = None
    return config
