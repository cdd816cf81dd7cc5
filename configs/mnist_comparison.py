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
    "dlgm": (mnist_mlp, "dlgm"),
    "relaxed_bernoulli": (mnist_relaxed_bernoulli, ""),
}
BEYOND_THE_PAPER = {
    name: (mnist_mlp, name)
    for name in (
        "all_blocks",
        "data_to_prior",
        "data_context10",
        "data_context2",
        "context2",
        "context4",
        "importance_weighted5",
        "shared_encoder",
        "unequal_latents",
        "carry",
    )
}
VARIANTS = {"": (mnist_mlp, "")} | SYSTEMS | BEYOND_THE_PAPER


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a row, by default the SeRe-VAE's, with the common budget."""
    module, row = base.choose_variant(variant, VARIANTS)
    config = module.get_config(row)
    config.training.num_epochs = 60
    return config
