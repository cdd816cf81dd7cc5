"""ResNet SeRe-VAE on CIFAR-10: 16 layers, each for an (8, 8, 3) block (paper, section 4.2.1).

    python -m experiments.main --config=configs/cifar_checkerboard.py
    python -m experiments.main --config=configs/cifar_checkerboard.py:small

Not yet trained to a result at this size; `configs/cifar_cases.py` is the ablation at a smaller one.
`:small` is for patches of two photographs, without a download: 8 minutes 37 seconds in all on two
CPU cores, of which 6 of training, to an ELBO of 3.85 bits/dim on 130 test patches.
"""

from ml_collections import ConfigDict

from configs import base

CASE_1 = {"model.couple_prior": False, "model.couple_bijector": False, "model.couple_data": False}
CASE_2 = {"model.couple_prior": False, "model.couple_bijector": False}
BEST = {"model.data_context": 16, "model.couple_data_to_prior": True}
SMALL = {
    "dataset.name": "photos",
    "dataset.validation_size": 200.0,
    "model.block_order": "raster",
    "model.hidden_size": 24,
    "training.batch_size": 32,
    "training.num_steps": 500,
    "training.learning_rate": 4e-3,
    "training.evaluate_every": "25%",
    "training.checkpoint_every": "25%",
    "training.warmup": "50 steps",
    "training.ema_decay": 0.99,
    "evaluation.num_importance_samples": 10,
}
VARIANTS = {
    "": {},
    "case1": CASE_1,
    "case2": CASE_2,
    "case3": {},
    "tiles": {"model.partition": "tiles"},
    "context4": {"model.context": 4},
    "data_context4": {"model.data_context": 4},
    "data_context16": {"model.data_context": 16},
    "best": BEST,
    "small": BEST | SMALL,
}


def get_config(variant: str = "") -> ConfigDict:
    """CIFAR-10, with the couplings of `variant`."""
    overrides = base.choose_variant(variant, VARIANTS)
    config = base.get_config()
    config.dataset.name = "cifar10"
    config.dataset.validation_size = 5000.0
    config.dataset.horizontal_flip = True
    model = config.model
    model.data_shape = (32, 32, 3)
    model.num_layers = 16
    model.latent_shape = (8, 8, 2)
    model.partition = "checkerboard"
    model.block_order = "boustrophedon"
    model.data_layer = "discretized_logistic_mixture"
    model.network = "resnet"
    model.hidden_size = 64
    model.sigma_min = 1.0
    model.residual_scale_start = 0.12
    model.carry_start = 0.97
    config.training.batch_size = 64
    config.training.kl_warmup = "50%"
    config.evaluation.num_importance_samples = 100
    config.evaluation.batch_size = 10
    config.sampling.completion_steps = 10
    config.update_from_flattened_dict(overrides)
    return config
