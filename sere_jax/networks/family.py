"""Neural networks of the layers: families that share one interface.

Every layer of the hierarchy reads a window of codes (sequential) and features of the observed
image (known in advance). A family keeps the two apart: its features module turns an image into an
offset, computed once per image, outside the scan over layers and outside the loop over importance
samples; its network module adds the offset to a hidden layer of the codes.

A condition (`config.condition_size`) enters features beside the image. Networks without features
add an affine map of it, `create_condition`, where they would add the offset.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn

from sere_jax.config import ModelConfig, choose
from sere_jax.networks.mlp import (
    LinearFeatures,
    LinearNetwork,
    LinearRefinement,
    MLPFeatures,
    MLPNetwork,
    MLPRefinement,
)
from sere_jax.networks.products import Dense
from sere_jax.networks.resnet import ResNetFeatures, ResNetNetwork, ResNetRefinement


class Family(NamedTuple):
    """The modules of a family."""

    features: Callable[..., nn.Module]
    network: Callable[..., nn.Module]
    refinement: Callable[..., nn.Module]  # of the features, one layer after another


NETWORKS: dict[str, Family] = {
    "linear": Family(LinearFeatures, LinearNetwork, LinearRefinement),
    "mlp": Family(MLPFeatures, MLPNetwork, MLPRefinement),
    "resnet": Family(ResNetFeatures, ResNetNetwork, ResNetRefinement),
}


def create_features(
    config: ModelConfig, *, is_generative: bool = False, **kwargs: Any
) -> nn.Module:
    """The feature network of the family `config.network`; see `create_network`."""
    return _family(config).features(config, **_dropout(config, is_generative), **kwargs)


def create_network(
    config: ModelConfig,
    output_shape: tuple[int, ...],
    *,
    is_generative: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """The conditional network of the family `config.network`.

    Args:
        is_generative: whether it belongs to a prior or a data layer (`config.generative_dropout`).
    """
    dropout = _dropout(config, is_generative)
    return _family(config).network(config, output_shape, **dropout, **kwargs)


def create_refinement(config: ModelConfig) -> nn.Module:
    """One step of the shared encoder, of the family `config.network`."""
    return _family(config).refinement(config)


def _dropout(config: ModelConfig, is_generative: bool) -> dict[str, float]:
    share = config.generative_dropout if is_generative else 0.0
    return {"dropout": share} if share else {}  # other families than `mlp` have no such field


def create_condition(config: ModelConfig) -> nn.Module:
    """A condition [..., C] to what networks of all families add to a hidden layer, 0 for zeros."""
    return Dense(config.hidden_size, use_bias=False)


def with_maps(config: ModelConfig, block_shape: tuple[int, ...]) -> ModelConfig:
    """That of networks whose codes are maps of `config.data_channels`; unchanged if it is 0."""
    channels = config.data_channels
    if not channels:
        return config
    return dataclasses.replace(
        config,
        latent_shape=(*block_shape[:2], channels),
        latent_sizes=(),
        hidden_size=channels,
        data_channels=0,
    )


def _family(config: ModelConfig) -> Family:
    return choose("network", config.network, NETWORKS)
