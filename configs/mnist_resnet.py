"""ResNet SeRe-VAE on dynamically binarized MNIST (paper, section 4.1.2), and beyond the paper.

    python -m experiments.main --config=configs/mnist_resnet.py
    python -m experiments.main --config=configs/mnist_resnet.py:paper
    python -m experiments.main --config=configs/mnist_resnet.py:small

Expected on the test set: -log p(x) of 81.31 nats, ELBO -81.72, after 60 epochs, six hours of a
core; the paper has 79.50. The 16 layers of 6 latents generate one interleaved 7 x 7 block each,
and data layers are convolutions of all previous blocks; one encoder serves all layers. `:paper` is
the model of the paper, 10 layers of 10 latents with an encoder each: 10.4 nats behind after 20
minutes of one core, not trained longer. `:small` has such layers, for binarized patches of two
photographs, without a download: 7 minutes in all on two CPU cores, of which 6 of training, to an
ELBO of -851 nats on 150 test patches.
"""

from ml_collections import ConfigDict

from configs import base, mnist_mlp

SMALL = {
    "dataset.name": "photos",
    "dataset.image_size": 28,
    "dataset.horizontal_flip": True,
    "dataset.validation_size": 500.0,
    "model.data_shape": (28, 28, 3),
    "model.hidden_size": 32,
    "training.batch_size": 100,
    "training.num_steps": 800,
    "training.evaluate_every": "20%",
    "training.checkpoint_every": "20%",
    "training.warmup": "100 steps",
    "training.ema_decay": 0.99,
    "evaluation.num_importance_samples": 100,
}
LATTICE = mnist_mlp.VARIANTS["lattice"] | {
    "dataset.validation_size": 1000.0,
    "model.data_channels": 32,
    "model.encoder": "shared",
    "model.hidden_size": 64,
    "training.batch_size": 100,
    "training.num_epochs": 60,
    "evaluation.checkpoint": "last",
}
VARIANTS = {"": LATTICE, "paper": {}, "small": SMALL}
PAPER_NLL = {"": 79.50, "paper": 79.50}
EXPECTED_NLL = {"": 81.31}


def get_config(variant: str = "") -> ConfigDict:
    """The model on a lattice, the one of the paper, or a small one for photographs."""
    overrides = base.choose_variant(variant, VARIANTS)
    config = mnist_mlp.get_config()
    config.model.network = "resnet"
    config.model.hidden_size = 128
    config.sampling.completion_steps = 30
    config.update_from_flattened_dict(overrides)
    config.paper.nll = PAPER_NLL.get(variant)
    config.paper.expected_nll = EXPECTED_NLL.get(variant)
    return config
