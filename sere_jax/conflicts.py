"""Fields of `config.model` that do not fit each other, and the names that these checks know."""

import math
from collections.abc import Iterator
from typing import Any

from sere_jax.rules import unused

NO_LATENTS = (0,)
HALVING = ("hilbert", "coarse_to_fine")  # orders of blocks of a pattern whose side is halved
LATTICES = ("checkerboard", "tiles")  # partitions whose blocks are images
FLOW = "masked_autoregressive_flow"
SERE_VAE, LADDER_VAE = "sere_vae", "ladder_vae"
IAF_VAE, RELAXED_BERNOULLI_VAE = "iaf_vae", "relaxed_bernoulli_vae"
# What this package enters in its tables. What others enter may read every field.
OWN_NAMES = {
    "system": (SERE_VAE, LADDER_VAE, IAF_VAE, RELAXED_BERNOULLI_VAE),
    "data_layer": ("bernoulli", "discretized_logistic_mixture", "gaussian", FLOW),
    "bijector": (
        "rank_one_affine",
        "spline_coupling",
        "masked_autoregressive",
        "inverse_autoregressive",
        "identity",
    ),
    "network": ("linear", "mlp", "resnet"),
}


def conflicts(config: Any) -> Iterator[str]:
    """Fields of a `ModelConfig` that do not fit each other or that nothing reads: the way out."""
    yield from unused(config, OWN_NAMES)
    yield from _conflicts_of_blocks(config)
    yield from _conflicts_of_latents(config)


def _conflicts_of_blocks(config: Any) -> Iterator[str]:
    for field in ("context", "data_context"):
        value = getattr(config, field)
        if value > config.num_layers:
            yield (
                f"{field}={value} exceeds num_layers={config.num_layers}; "
                f"choose 1 to {config.num_layers}"
            )
    if config.sigma_min >= config.sigma_max:
        yield (
            f"sigma_min={config.sigma_min} and sigma_max={config.sigma_max} must satisfy "
            "sigma_min < sigma_max"
        )
    if config.num_joint_layers and config.has_flows:
        yield (
            f"num_joint_layers={config.num_joint_layers} means nothing to data_layer={FLOW!r}; "
            "leave it at 0, or choose another data layer"
        )
    has_lattice = config.partition in LATTICES
    if config.data_channels and (not has_lattice or config.has_flows):
        yield (
            f"data_channels={config.data_channels} needs blocks that are images and independent "
            "pixels; leave it at 0, or choose partition='checkerboard' or 'tiles', and another "
            f"data_layer than {FLOW!r}"
        )
    if config.block_order != "raster" and not has_lattice:
        yield (
            f"block_order={config.block_order!r} means nothing to partition={config.partition!r}; "
            "leave it at 'raster', or choose partition='checkerboard' or 'tiles'"
        )
    side = math.isqrt(config.num_layers)
    if config.block_order in HALVING and side & (side - 1):
        yield (
            f"block_order={config.block_order!r} halves the pattern again and again, and "
            f"num_layers={config.num_layers} is not 1, 4, 16, 64 ...; choose one of these, or "
            "block_order='boustrophedon'"
        )
    start = math.sqrt(1.0 - config.carry_start**2) if config.couple_bijector else 1.0
    if config.bijector_diagonal_min >= start:
        yield (
            f"bijector_diagonal_min={config.bijector_diagonal_min} must be below {start:.3g}, "
            f"where d starts with carry_start={config.carry_start}; lower one of them"
        )
    if config.block_dropout and not (config.couple_data or config.couple_data_to_prior):
        yield (
            f"block_dropout={config.block_dropout} means nothing where no layer sees the previous "
            "blocks; leave it at 0.0, or choose couple_data=True"
        )
    if config.block_dropout and config.flow_direct_connections:
        yield (
            f"block_dropout={config.block_dropout} would hide values that the whitening of "
            "flow_direct_connections=True is made for; set one of them to 0.0 or False"
        )
    if config.system in (IAF_VAE, RELAXED_BERNOULLI_VAE) and config.num_layers != 1:
        yield f"num_layers={config.num_layers} must be 1 with system={config.system!r}"


def _conflicts_of_latents(config: Any) -> Iterator[str]:
    shape, sizes = config.latent_shape, config.latent_sizes
    is_vector = len(shape) == 1 and config.has_latents
    if sizes and not is_vector:
        yield (
            f"latent_sizes={sizes} needs codes that are vectors, not latent_shape={shape}; set it "
            f"to () or choose ({max(sizes)},)"
        )
    if sizes and (len(sizes) != config.num_layers or max(sizes) > shape[0]):
        yield (
            f"latent_sizes={sizes} must hold num_layers={config.num_layers} numbers of at most "
            f"{shape[0]}, as latent_shape={shape} says"
        )
    if sizes and config.prior == "spline":
        yield (
            f"latent_sizes={sizes} does not fit prior='spline', whose splines couple all codes of "
            "a layer; set it to (), or choose prior='gaussian'"
        )
    if config.data_channels and not is_vector:
        yield (
            f"data_channels={config.data_channels} needs codes that are vectors, not "
            f"latent_shape={shape}; leave it at 0, or choose a vector such as (10,)"
        )
    if config.state_size and not config.has_latents:
        yield f"state_size={config.state_size} needs codes; leave it at 0, or choose at least one"
    if config.system in OWN_NAMES["system"] and config.system != SERE_VAE and not is_vector:
        yield (f"latent_shape={shape} must be a vector such as (30,) with system={config.system!r}")
    has_parameters = config.prior != "standard_normal" and config.has_latents
    if config.couple_data_to_prior and not has_parameters:
        yield (
            "couple_data_to_prior=True needs a prior with parameters; there is none with "
            f"latent_shape={shape} and prior={config.prior!r}: set it to False"
        )
    if not config.has_latents and not config.has_flows:
        yield (
            f"latent_shape={NO_LATENTS} (no latents) leaves the data layer {config.data_layer!r} "
            f"without anything to depend on; choose data_layer={FLOW!r}, or at least one latent"
        )
