"""Sampling images of 3072 values: the SeRe-VAE in O(L) steps, flows in O(D).

The models are those of the configurations, with random parameters.
"""

import functools

import jax

import sere_jax
from benchmarks import production, unrolled
from benchmarks.harness import Benchmark, Step, Target
from configs import cifar_checkerboard, cifar_maf, mnist_mlp

NUM_IMAGES = 100


def sere_vae(quick: bool) -> Step:
    """The SeRe-VAE with perceptrons as wide as the networks of the flows."""
    return _sampler(_perceptrons(quick))


def unrolled_sere_vae(quick: bool) -> Step:
    """The same without a scan over its layers."""
    model = _perceptrons(quick)
    return _sampler(model, unrolled.UnrolledSeReVAE(model.config))


def resnet_sere_vae(quick: bool) -> Step:
    """The SeRe-VAE with residual networks."""
    config = production.reduced_resnet(cifar_checkerboard.get_config(), quick)
    return _sampler(sere_jax.create_model(config))


def sere_maf(quick: bool) -> Step:
    """Flows in the data layers of a SeRe-VAE."""
    return _sampler(_flow("sere_maf", quick))


def maf_10(quick: bool) -> Step:
    """Ten flows over the image."""
    return _sampler(_flow("maf10", quick))


def peer(quick: bool, *, name: str) -> Step:
    """Ten flows of another implementation; see `flow_sampling`."""
    from benchmarks import flow_sampling

    return getattr(flow_sampling, name)(quick, NUM_IMAGES)


def _sampler(
    model: sere_jax.LatentVariableModel, other: sere_jax.LatentVariableModel | None = None
) -> Step:
    """Of the model, or of another one with its parameters."""
    params = sere_jax.init(model, jax.random.key(0))
    return production.until_ready(
        sere_jax.sample, other or model, params, jax.random.key(1), NUM_IMAGES
    )


def _perceptrons(quick: bool) -> sere_jax.LatentVariableModel:
    config = mnist_mlp.get_config()
    flow = cifar_maf.get_config("maf10").model
    config.model.data_shape = flow.data_shape
    config.model.hidden_size = flow.flow_hidden_size
    config.model.data_layer = "gaussian"
    return sere_jax.create_model(production.reduced_mlp(config, quick))


def _flow(variant: str, quick: bool) -> sere_jax.LatentVariableModel:
    return sere_jax.create_model(production.reduced_flow(cifar_maf.get_config(variant), quick))


PEERS = {
    f"MAF-10 of {name}, extrapolated from 1 % of its passes": functools.partial(peer, name=name)
    for name in ("nflows", "pythae")
}
SAMPLING = Benchmark(
    name="sampling",
    work="sampling, one image of 3072 values, 100 at once",
    contenders={
        "SeRe-VAE": sere_vae,
        "SeRe-VAE, unrolled": unrolled_sere_vae,
        "SeRe-VAE, ResNet": resnet_sere_vae,
        "SeRe-MAF": sere_maf,
        "MAF-10": maf_10,
        **PEERS,
    },
    targets=dict.fromkeys(PEERS, Target(">=", 50.0)),
    units=NUM_IMAGES,
    units_name="images",
)
