"""Sampling images of 3072 values: the SeRe-VAE in O(L) steps, flows in O(D).

The models are those of the configurations, with random parameters.
"""

from collections.abc import Callable

import jax
from ml_collections import ConfigDict

import sere_jax
from benchmarks.harness import Benchmark, Step
from configs import cifar_checkerboard, cifar_maf

NUM_IMAGES = 100


def _sampler(config: ConfigDict, quick_model: dict[str, object]) -> Callable[[bool], Step]:
    def build(quick):
        if quick:
            config.model.update(quick_model)
        model = sere_jax.create_model(config)
        params = sere_jax.init(model, jax.random.key(0))

        def step():
            jax.block_until_ready(sere_jax.sample(model, params, jax.random.key(1), NUM_IMAGES))

        return step

    return build


FLOW_AT_QUICK = {"data_shape": (4, 4, 3), "flow_hidden_size": 16, "hidden_size": 8}

SAMPLING = Benchmark(
    name="sampling",
    work="sampling, one image of 3072 values, 100 at once",
    target="at least 50 times as fast as MAF-10",
    contenders={
        "SeRe-VAE": _sampler(
            cifar_checkerboard.get_config(),
            {"data_shape": (8, 8, 3), "latent_shape": (2, 2, 2), "hidden_size": 8},
        ),
        "SeRe-MAF": _sampler(cifar_maf.get_config("sere_maf"), FLOW_AT_QUICK),
        "MAF-10": _sampler(cifar_maf.get_config("maf10"), FLOW_AT_QUICK),
    },
    units=NUM_IMAGES,
)
