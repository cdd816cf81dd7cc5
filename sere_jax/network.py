"""Neural networks of the layers: families that share one interface.

Every layer of the hierarchy reads a window of codes (sequential) and features of the observed
image (known in advance). A family keeps the two apart: its features module turns an image into an
offset, computed once an image, outside the scan over layers and outside the loop over importance
samples; its network module adds the offset to a hidden layer of the codes.
"""

from collections.abc import Callable

from flax import linen as nn

from sere_jax.config import ModelConfig, choose
from sere_jax.mlp import LinearFeatures, LinearNetwork, MLPFeatures, MLPNetwork
from sere_jax.resnet import ResNetFeatures, ResNetNetwork

NETWORKS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "linear": (LinearFeatures, LinearNetwork),
    "mlp": (MLPFeatures, MLPNetwork),
    "resnet": (ResNetFeatures, ResNetNetwork),
}


def create_features(config: ModelConfig, **kwargs) -> nn.Module:
    """The feature network of the family `config.network`."""
    return choose("network", config.network, NETWORKS)[0](config, **kwargs)


def create_network(config: ModelConfig, output_shape: tuple[int, ...], **kwargs) -> nn.Module:
    """The conditional network of the family `config.network`."""
    return choose("network", config.network, NETWORKS)[1](config, output_shape, **kwargs)
