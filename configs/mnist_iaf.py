"""Inverse autoregressive flows as bijective layers, on dynamically binarized MNIST (paper, 4.1.1).

    python -m experiments.main --config=configs/mnist_iaf.py:iaf
    python -m experiments.main --config=configs/mnist_iaf.py:sere_iaf

`:iaf` is one layer of 100 latents, `:sere_iaf` the hierarchy of 10 times 10; ε is standard normal
in both. The paper has 83.04 and 81.96 nats; 60 epochs gave 89.69 and 83.84 here (RESULTS.md).
"""

from ml_collections import ConfigDict

from configs import base, mnist_mlp

VARIANTS = {
    "": {},
    "sere_iaf": {},
    "iaf": {
        "num_layers": 1,
        "latent_shape": (100,),
        "couple_prior": False,
        "couple_bijector": False,
        "couple_data": False,
    },
}
PAPER_NLL = {"": 81.96, "sere_iaf": 81.96, "iaf": 83.04}


def get_config(variant: str = "") -> ConfigDict:
    """`mnist_mlp` with another bijector and a standard normal prior."""
    overrides = base.choose_variant(variant, VARIANTS)
    config = mnist_mlp.get_config()
    config.model.bijector = "inverse_autoregressive"
    config.model.prior = "standard_normal"
    config.model.update(overrides)
    config.paper.nll = PAPER_NLL[variant]
    return config
