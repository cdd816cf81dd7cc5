"""What must hold between a configuration, its images, the devices and the memory.

Each check raises a `UserError`, before anything compiles.
"""

import functools
import math
import os
from typing import Any

import jax

import sere_jax
from experiments.data import Dataset
from experiments.distributed.devices import num_devices
from experiments.system.errors import UserError
from experiments.training.state import count_parameters
from sere_jax.data_layer import data_space_of
from sere_jax.sere_vae import SeReVAE


def check_pieces(training: Any) -> None:
    """Refuses pieces of unequal size."""
    device_batch = training.batch_size // num_devices()
    if device_batch % training.accumulate_steps:
        small = {n for n in range(1, math.isqrt(device_batch) + 1) if device_batch % n == 0}
        allowed = sorted(small | {device_batch // n for n in small})
        raise UserError(
            f"config.training.accumulate_steps={training.accumulate_steps} does not divide the "
            f"{device_batch} images of a device's part of the batch; choose one of "
            f"{', '.join(map(str, allowed))}"
        )


def check_weight_decay(training: Any, model: sere_jax.LatentVariableModel) -> None:
    """Refuses weight decay of what the model does not have."""
    if training.weight_decay_on == "generative" and not isinstance(model, SeReVAE):
        raise UserError(
            "config.training.weight_decay_on='generative' means nothing to "
            f"config.model.system={model.config.system!r}; choose 'all' or 'kernels', or "
            "system='sere_vae'"
        )


def check_images(config: Any, model: sere_jax.LatentVariableModel, dataset: Dataset) -> None:
    """Refuses images of another shape or other values than the model's, or too few of them."""
    name, batch_size = config.dataset.name, config.training.batch_size
    if dataset.image_shape != tuple(config.model.data_shape):
        raise UserError(
            f"config.model.data_shape={tuple(config.model.data_shape)} does not fit the images of "
            f"{name!r}, which have the shape {dataset.image_shape}"
        )
    max_value = data_space_of(model.config).max_value
    if max_value not in (None, dataset.max_value):
        raise UserError(
            f"config.model.data_layer={config.model.data_layer!r} models the values 0 to "
            f"{max_value}, the images of {name!r} have 0 to {dataset.max_value}; "
            "choose 'bernoulli' or 'gaussian'"
        )
    split, num_examples = config.evaluation.split, config.evaluation.num_examples
    present = len(getattr(dataset, split))
    if not present:
        raise UserError(
            f"config.evaluation.split={split!r}: {name!r} has no {split} images to evaluate; "
            "choose the other split"
        )
    if num_examples > present:
        raise UserError(
            f"config.evaluation.num_examples={num_examples} exceeds the {present} {split} "
            f"images of {name!r}; choose at most {present}, or 0 for all"
        )
    if batch_size > len(dataset.train):
        num, chosen = len(dataset.train), config.dataset.num_train_examples
        more = f"hold out fewer by config.dataset.validation_size ({len(dataset.validation)} are)"
        if chosen == num:
            more = f"raise config.dataset.num_train_examples={chosen} (0: all)"
        raise UserError(
            f"config.training.batch_size={batch_size} exceeds the {num} training examples of "
            f"{name!r}; choose at most {num}, or {more}"
        )


def check_size(model: sere_jax.LatentVariableModel) -> None:
    """Refuses a model whose training state exceeds the memory of the machine."""
    shapes = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    # Parameters, their averages and the optimizer's two moments, float32.
    needed = 16 * count_parameters(shapes)
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise UserError(
            f"config.model with num_layers={model.config.num_layers}, latent_shape="
            f"{model.config.latent_shape} and hidden_size={model.config.hidden_size} takes "
            f"{needed / 1e9:.3g} GB of memory to train, this machine has {present / 1e9:.3g} GB; "
            "lower one of them"
        )
