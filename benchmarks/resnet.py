"""Training steps of the ResNet SeRe-VAE beside the unrolled model; its encoders beside PyTorch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import sere_jax
from benchmarks import production, unrolled
from benchmarks.harness import Benchmark, Step, Target
from configs import cifar_checkerboard

UPDATES = 2


def ours(quick: bool, *, variant: str) -> Step:
    """The production step of a variant of `configs/cifar_checkerboard.py`."""
    return production.train_step(_config(variant, quick), UPDATES)


def without_scan(quick: bool, *, variant: str) -> Step:
    """The same step of a model whose layers are parts of the program of their own."""
    config = _config(variant, quick)
    model = unrolled.UnrolledSeReVAE(sere_jax.create_model(config).config)
    return production.train_step(config, UPDATES, model=model)


def encoders(quick: bool) -> Step:
    """Gradient of the encoders of all layers, which without couplings are all of `observe`."""
    config = _config("case1", quick)
    model = sere_jax.create_model(config)
    params = sere_jax.init(model, jax.random.key(0))
    layers = params["hierarchy"]["layers"]
    x = jnp.asarray(_batch(config))

    @jax.jit
    @jax.grad
    def gradient(encoder):
        replaced = {"hierarchy": {"layers": {**layers, "encoder": encoder}}}
        observed: Any = model.apply({"params": replaced}, x, method="observe")
        return jnp.mean(jnp.square(observed.posterior))

    return production.until_ready(gradient, layers["encoder"])


def torch_encoders(quick: bool, *, compiled: bool) -> Step:
    """The same in PyTorch."""
    from benchmarks import pytorch

    config = _config("case1", quick)
    model = pytorch.ResNetEncoders(sere_jax.create_model(config).config)
    x = _batch(config).astype(np.float32)
    return pytorch.gradient_step(model, x / 127.5 - 1.0, compiled=compiled)


def _batch(config: ConfigDict) -> np.ndarray:
    return production.random_images(config, config.training.batch_size)


def _config(variant: str, quick: bool) -> ConfigDict:
    return production.reduced_resnet(cifar_checkerboard.get_config(variant), quick)


def _beside_unrolled(name: str, work: str, variant: str) -> Benchmark:
    return Benchmark(
        name=name,
        work=work,
        contenders={
            "ours": functools.partial(ours, variant=variant),
            "unrolled": functools.partial(without_scan, variant=variant),
        },
        targets={"unrolled": Target(">=", 1.0)},
        units=UPDATES,
    )


RESNET_SMALL = _beside_unrolled(
    "resnet_step:small", "train step of `cifar_checkerboard:small`, 24 channels, batch 32", "small"
)
RESNET = _beside_unrolled(
    "resnet_step:full", "train step of `cifar_checkerboard`, 64 channels, batch 64", ""
)
RESNET_ENCODERS = Benchmark(
    name="resnet_step:encoders",
    work="gradient of the 16 encoders of `cifar_checkerboard`, batch 64",
    contenders={
        "ours": encoders,
        "PyTorch": functools.partial(torch_encoders, compiled=False),
        "torch.compile": functools.partial(torch_encoders, compiled=True),
    },
    targets={"torch.compile": Target(">=", 1.0)},
)
