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

__all__ = ["DATA_LAYERS", "DataLayer", "create_data_layer", "data_space_of"]

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


def _class_of(config: ModelConfig) -> type[DataLayer]:
    return choose("data_layer", config.data_layer, DATA_LAYERS)
