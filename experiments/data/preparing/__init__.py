"""Preparing data sets of TFDS, so that they can be read without TensorFlow.

`mnist`, `fashion_mnist`, `kmnist`, `cifar10` and `cifar100` need no TensorFlow: their official
builders are used, and only the reading of the source files is replaced. Any other data set goes
through its official builder, which needs TensorFlow. Both write the usual directories of TFDS, in
the array_record format.
"""

from experiments.data.preparing.builder import (
    PreparationImpossibleError,
    find_builder,
    is_prepared,
    preparation_command,
    quiet_logs,
    resolve_data_dir,
)
from experiments.data.preparing.prepare import prepare
from experiments.data.preparing.readers import SOURCE_READERS

__all__ = [
    "SOURCE_READERS",
    "PreparationImpossibleError",
    "find_builder",
    "is_prepared",
    "preparation_command",
    "prepare",
    "quiet_logs",
    "resolve_data_dir",
]
