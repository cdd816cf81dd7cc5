"""The data layers p(x_l | z_l, x_{l-1}) by name.

To add one, derive from `DataLayer` and enter it in `DATA_LAYERS`, from whatever file.
"""

from sere_jax.config import ModelConfig, choose
from sere_jax.conflicts import FLOW
from sere_jax.data_space import DataSpace
from sere_jax.flows.data_layer import MaskedAutoregressiveFlowDataLayer
from sere_jax.pixels import (
    BernoulliDataLayer,
    DataLayer,
    DiscretizedLogisticMixtureDataLayer,
    GaussianDataLayer,
)

__all__ = [
    "DATA_LAYERS",
    "DataLayer",
    "create_data_layer",
    "data_space_of",
    "has_independent_pixels",
]

DATA_LAYERS: dict[str, type[DataLayer]] = {
    "bernoulli": BernoulliDataLayer,
    "discretized_logistic_mixture": DiscretizedLogisticMixtureDataLayer,
    "gaussian": GaussianDataLayer,
    FLOW: MaskedAutoregressiveFlowDataLayer,
}


def create_data_layer(
    config: ModelConfig, block_shape: tuple[int, ...], *, is_whole_image: bool = False
) -> DataLayer:
    """The data layer called `config.data_layer`; see `DataLayer` for what it is given."""
    return _class_of(config)(config, block_shape, is_whole_image)


def data_space_of(config: ModelConfig) -> DataSpace:
    """The data space of the data layer called `config.data_layer`."""
    return _class_of(config).space


def has_independent_pixels(config: ModelConfig) -> bool:
    """Whether the pixels of a block are independent given its parameters γ."""
    return _class_of(config).block_log_prob is DataLayer.block_log_prob


def _class_of(config: ModelConfig) -> type[DataLayer]:
    return choose("data_layer", config.data_layer, DATA_LAYERS)
