"""The condition of a model (`config.model.condition_size`), as `config.dataset.condition` says.

"affine": how the image was transformed, see `input_pipeline`; zeros say "not at all", and so it is
wherever images are not transformed. "label": the class of the image, one-hot.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.data.dataset import Dataset
from experiments.data.input_pipeline import BOUNDS
from experiments.system.errors import UserError

Array = jax.Array


def condition_rows(labels: Any, num: int, size: int) -> Array | None:
    """The condition [num, size] of images that are not transformed; None, if `size` is 0.

    Of `labels` [num], or zeros where there are none.
    """
    if not size:
        return None
    return jnp.zeros((num, size)) if labels is None else jax.nn.one_hot(jnp.asarray(labels), size)


def check_condition(config: Any, dataset: Dataset) -> None:
    """Checks that the model has the condition that comes with the images.

    Raises:
        UserError: it has not; the message names the right size.
    """
    kind, size = config.dataset.condition, config.model.condition_size
    sizes = {
        "": (0, "images come without a condition; or choose 'affine' or 'label'"),
        "affine": (len(BOUNDS), "one for each parameter of the affine map"),
    }
    if kind == "label" and dataset.labels is not None:
        num_classes = dataset.labels.num_classes
        sizes["label"] = (num_classes, f"one for each class of {config.dataset.name!r}")
    expected, reason = sizes[kind]
    if size != expected:
        raise UserError(
            f"config.model.condition_size={size} must be {expected} with "
            f"config.dataset.condition={kind!r}: {reason}"
        )
