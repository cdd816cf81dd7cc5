"""Minutes-long stand-ins for `cifar_checkerboard`: 16x16 patches of photographs, 16 layers.

    python -m experiments.main --config=configs/cifar_proxy.py:boustrophedon

For questions that are asked again and again: which order of the blocks, which state of the codes.
"""

from ml_collections import ConfigDict

from configs import base, cifar_checkerboard

VARIANTS = {
    "": {},
    "boustrophedon": {"model.block_order": "boustrophedon"},
    "hilbert": {"model.block_order": "hilbert"},
    "coarse_to_fine": {"model.block_order": "coarse_to_fine"},
    "no_carry": {"model.carry_start": 0.0},
    "state": {"model.carry_start": 0.0, "model.state_size": 16},
    "diagonal": {"model.bijector_diagonal_min": 0.2},
    "all_blocks": {"model.data_context": 16},
}


def get_config(variant: str = "") -> ConfigDict:
    """`cifar_checkerboard:small`, smaller still, and with one code in view."""
    overrides = base.choose_variant(variant, VARIANTS)
    config = cifar_checkerboard.get_config("small")
    config.dataset.image_size = 16
    model = config.model
    model.data_shape = (16, 16, 3)
    model.latent_shape = (4, 4, 2)
    model.data_context = 1
    model.couple_data_to_prior = False
    config.sampling.completion_steps = 0
    config.update_from_flattened_dict(overrides)
    return config
