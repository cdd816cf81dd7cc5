"""Stand-ins for `cifar_cases.py`, minutes long: 16x16 colour images, to compare options.

    python -m experiments.main --config=configs/cifar_proxy.py:VARIANT

CIFAR-10, each pixel the mean of 2x2; patches of two photographs, without a download, are
`--config.dataset.name=photos`. Unless `OPTIONS` says otherwise there are 16 layers with blocks of
4x4. Each sees one block and one code before it, as case 3 does, so that the order counts. A run
takes about 4 minutes of one core of two that are busy, 1 to 4 of them of training. RESULTS.md has
the figures, with `--config.dataset.name=cifar10_jpeg` and `--config.seed=0` and 1.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base, cifar_cases

FOUR_LAYERS = {"model.num_layers": 4, "model.latent_shape": (8, 8, 2)}
BOUSTROPHEDON = {"model.block_order": "boustrophedon"}
NO_CARRY = {"model.carry_start": 0.0}
STATE = NO_CARRY | {"model.state_size": 32}
TILES = {"model.partition": "tiles"}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "raster": ("blocks row by row", {}),
    "boustrophedon": ("every other row from the right", BOUSTROPHEDON),
    "hilbert": ("along a curve of Hilbert", {"model.block_order": "hilbert"}),
    "coarse_to_fine": (
        "at first every other block of every other row",
        {"model.block_order": "coarse_to_fine"},
    ),
    "case2": ("data layers see the previous block, layers not the previous code", {}),
    "case2_boustrophedon": ("the same, every other row from the right", BOUSTROPHEDON),
    "case1": ("neither is seen, row by row", {}),
    "small_case1": ("neither is seen, 4 layers with blocks of 8x8", FOUR_LAYERS),
    "no_carry": ("no code is handed on at the start", NO_CARRY),
    "state": ("the same, with a state of 32 channels", STATE),
    "local": (
        "encoders see their block, the one before and the one after alone",
        {"model.encoder": "local"},
    ),
    "diagonal": ("d of the bijector is at least 0.2", {"model.bijector_diagonal_min": 0.2}),
    "tiles": ("blocks are contiguous tiles", TILES),
    "tiles_state": ("tiles, with a state of 32 channels, nothing handed on", TILES | STATE),
}
VARIANTS: dict[str, dict[str, Any]] = {"": {}, "small": FOUR_LAYERS} | {
    name: overrides for name, (_, overrides) in OPTIONS.items()
}


def get_config(variant: str = "") -> ConfigDict:
    """A case of `cifar_cases`, the third unless `variant` names it, smaller; with its overrides."""
    overrides = base.choose_variant(variant, VARIANTS)
    case = next((case for case in ("case1", "case2") if case in variant), "case3")
    config = cifar_cases.get_config(case)
    config.dataset.shrink = 2
    config.dataset.image_size = 16
    config.dataset.validation_size = 1000.0
    model = config.model
    model.data_shape = (16, 16, 3)
    model.block_order = "raster"
    model.latent_shape = (4, 4, 2)
    model.hidden_size = 24
    training = config.training
    training.num_steps = 500
    training.learning_rate = 8e-3
    training.warmup = "50 steps"
    training.ema_decay = 0.99
    training.evaluate_every = "50%"
    training.checkpoint_every = "50%"
    config.evaluation.test_elbo_every = ""
    config.evaluation.num_examples = 500
    config.sampling.completion_steps = 0
    config.update_from_flattened_dict(overrides)
    return config
