"""The paper's ablation of the couplings on CIFAR-10 (its section 4.2.1), at half the width.

    python -m experiments.main --config=configs/cifar_cases.py:case1
    python -m experiments.main --config=configs/cifar_cases.py:case2
    python -m experiments.main --config=configs/cifar_cases.py:case3

The budget is one of time, so that the cheaper cases make more updates: 45 minutes of training on
two cores each, as 90 minutes on one of them. The test set's ELBO is logged after half of it.
"""

from ml_collections import ConfigDict

from configs import base, cifar_checkerboard

VARIANTS = {
    "": {"training.num_steps": 5100},
    "case1": {"training.num_steps": 10200},
    "case2": {"training.num_steps": 6950},
    "case3": {"training.num_steps": 5100},
}


def get_config(variant: str = "") -> ConfigDict:
    """`cifar_checkerboard` with 32 channels and the budget of `variant`."""
    overrides = base.choose_variant(variant, VARIANTS)
    config = cifar_checkerboard.get_config(variant)
    config.model.hidden_size = 32
    config.training.batch_size = 32
    config.training.evaluate_every = "25%"
    config.training.checkpoint_every = "5%"
    config.evaluation.test_elbo_every = "50%"
    config.evaluation.checkpoint = "last"
    config.evaluation.num_importance_samples = 5
    config.update_from_flattened_dict(overrides)
    return config
