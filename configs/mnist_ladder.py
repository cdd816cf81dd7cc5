"""Ladder VAE of 64, 32, 16, 8 and 4 latents on dynamically binarized MNIST (Sønderby et al. 2016).

    python -m experiments.main --config=configs/mnist_ladder.py
    python -m experiments.main --config=configs/mnist_ladder.py:iw10

`:iw10` trains the importance-weighted bound of 10 samples in the last quarter: the original too
goes on from a trained model with that bound. The paper has 81.84 and 81.74 nats.
`configs/mnist_comparison.py:ladder`, of width 910, with the weight of the KL from 0 over half of
150 epochs, has 82.75, and `:ladder_iw10` 82.33.
"""

from ml_collections import ConfigDict

from configs import base, mnist_mlp

VARIANTS = {
    "": {},
    "iw10": {
        "training.num_train_samples": 10,
        "training.importance_weighted_from": "75%",
        "evaluation.checkpoint": "last",  # the best is chosen by its ELBO
    },
}
PAPER_NLL = {"": 81.84, "iw10": 81.74}


def get_config(variant: str = "") -> ConfigDict:
    """`mnist_mlp` with another system."""
    overrides = base.choose_variant(variant, VARIANTS)
    config = mnist_mlp.get_config()
    config.model.system = "ladder_vae"
    config.model.num_layers = 5
    config.model.latent_shape = (64,)
    config.model.latent_sizes = (64, 32, 16, 8, 4)
    config.model.hidden_size = 512
    config.update_from_flattened_dict(overrides)
    config.paper.nll = PAPER_NLL[variant]
    config.paper.expected_nll = None
    return config
