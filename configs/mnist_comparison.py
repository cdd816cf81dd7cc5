"""The systems of the paper's MNIST table at one equal budget, and single options beyond it.

    python -m experiments.main --config=configs/mnist_comparison.py:ROW

A ROW is a key of `VARIANTS`: a system or an option as another configuration has it, trained for 60
epochs. RESULTS.md has the figures; the paper does not say how long it trained.
"""

from ml_collections import ConfigDict

from configs import base, mnist_iaf, mnist_ladder, mnist_mlp, mnist_relaxed_bernoulli

SYSTEMS = {
    "sere_vae": (mnist_mlp, ""),
    "ladder": (mnist_ladder, ""),
    "ladder_iw10": (mnist_ladder, "iw10"),
    "sere_iaf": (mnist_iaf, "sere_iaf"),
    "iaf": (mnist_iaf, "iaf"),
    "iaf_vae": (mnist_iaf, "iaf_vae"),
    "dlgm": (mnist_mlp, "dlgm"),
    "relaxed_bernoulli": (mnist_relaxed_bernoulli, ""),
}
BEYOND_THE_PAPER = {
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
VARIANTS = {"": (mnist_mlp, "")} | SYSTEMS | {name: (mnist_mlp, name) for name in BEYOND_THE_PAPER}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a row, by default the SeRe-VAE's, with the common budget."""
    module, row = base.choose_variant(variant, VARIANTS)
    config = module.get_config(row)
    config.training.num_epochs = 60
    return config
