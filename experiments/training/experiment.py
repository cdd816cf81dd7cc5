"""Everything that follows from a configuration: data, model, schedules, number of steps."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sere_jax
from experiments.data import DATASETS, Dataset, input_pipeline, load_dataset
from experiments.data.condition import check_condition
from experiments.distributed.devices import num_devices
from experiments.settings import durations, schedules
from experiments.settings.checks import check_configuration
from experiments.system.errors import UserError
from experiments.system.git import git_commit
from experiments.training.evaluation import Evaluator, bits_per_dim
from experiments.training.state import TrainState, count_parameters, init_state, state_template
from experiments.training.step import StepSettings, create_train_dispatch
from sere_jax.bijector import BIJECTORS
from sere_jax.compilation import jit
from sere_jax.data_layer import DATA_LAYERS, data_space_of
from sere_jax.functions import SYSTEMS
from sere_jax.networks.family import NETWORKS
from sere_jax.partition import PARTITIONS
from sere_jax.sere_vae import SeReVAE

NUM_VOLUME_IMAGES = 5000
NUM_WHITENED_IMAGES = 50_000  # at most, that flows with direct connections start from


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked configuration and what follows from it."""

    config: Any
    dataset: Dataset
    model: sere_jax.LatentVariableModel
    steps_per_epoch: int
    total_steps: int
    horizon_steps: int  # what schedules and percentages take for the whole training
    learning_rate: optax.Schedule
    kl_weight: optax.Schedule
    git_commit: str  # of the code

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer with its learning-rate schedule."""
        return schedules.create_optimizer(self.config.training, self.learning_rate)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """Compiled evaluation."""
        return Evaluator(
            self.model,
            max_value=self.dataset.max_value,
            batch_size=self.config.evaluation.batch_size,
            num_importance_samples=self.config.evaluation.num_importance_samples,
            samples_at_once=self.config.evaluation.samples_at_once,
        )

    def init_state(self) -> TrainState:
        """The state before the first step; flows start from the first images."""
        x = None
        if self.model.config.has_flows:
            num_images = self.config.training.batch_size
            if self.model.config.flow_direct_connections:
                num_images = max(num_images, NUM_WHITENED_IMAGES)
            images = jnp.asarray(self.dataset.train[:num_images])
            x, _ = self.evaluator.to_data_space(images, jnp.arange(len(images)), "train")
        create = functools.partial(init_state, self.model, self.optimizer, self.config.seed)
        return jit(create, optimize=False)(x)

    def state_template(self) -> TrainState:
        """See `training.state.state_template`."""
        return state_template(self.model, self.optimizer, self.config.seed)

    def create_train_dispatch(self) -> Callable:
        """See `training.step.create_train_dispatch`."""
        settings = StepSettings(
            model=self.model,
            optimizer=self.optimizer,
            training=self.config.training,
            kl_weight=self.kl_weight,
            augment=self.augmentation(),
            num_examples=len(self.dataset.train),
            max_value=self.dataset.max_value,
            importance_weighted_from=self.duration_in_steps("training", "importance_weighted_from"),
            has_labels=self.dataset.labels is not None,
        )
        return create_train_dispatch(settings)

    def augmentation(self) -> Callable:
        """See `input_pipeline.augmentation`."""
        until = self.duration_in_steps("dataset", "random_affine_until")
        return input_pipeline.augmentation(self.config.dataset, until, self.dataset.max_value)

    def bits_per_dim(self, nll: float, split: str) -> float:
        """Bits per value of an image; see `evaluation.bits_per_dim`.

        Args:
            nll: mean -log p(x) in nats, in the data space of the model.
            split: "train", "validation" or "test", the images that it is the mean of.
        """
        max_value = self.dataset.max_value
        return bits_per_dim(nll, self.model.config, max_value, self._log_volume(split))

    def _log_volume(self, split: str) -> float:
        """Of "train" that of the first images, the same to a few thousandths of a bit."""
        if split not in self._log_volumes:
            images = {
                "train": self.dataset.train[:NUM_VOLUME_IMAGES],
                "validation": self.dataset.validation,
                "test": self.test_images(),
            }
            self._log_volumes[split] = self.evaluator.log_volume(images[split], split)
        return self._log_volumes[split]

    @functools.cached_property
    def _log_volumes(self) -> dict[str, float]:
        return {}

    def duration_in_steps(self, section: str, field: str) -> int:
        """The duration in `config.SECTION.FIELD` in optimizer steps."""
        return durations.duration_in_steps(
            f"config.{section}.{field}",
            self.config[section][field],
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.horizon_steps,
        )

    def interval_in_steps(self, section: str, field: str) -> int:
        """The same of what is done every so often: at least 1."""
        return max(self.duration_in_steps(section, field), 1)

    def summary(self) -> list[str]:
        """What a training is about to do, in three lines."""
        dataset, training = self.dataset, self.config.training
        parts = [dataset.train, dataset.validation]
        if self.config.evaluation.test_elbo_every:
            parts.append(self.test_images())
        params = count_parameters(self.state_template().params)
        images, state = (size / 1e6 for size in (sum(p.nbytes for p in parts), 20 * params))
        shape = "x".join(map(str, dataset.image_shape))
        epochs = self.total_steps / self.steps_per_epoch
        return [
            f"data: {len(dataset.train)} images of {dataset.name!r} to train, "
            f"{len(dataset.validation)} to validate, {len(self.test_images())} to test, {shape}",
            f"model: {self.model.config.system}, {params:,} parameters; {self.total_steps} steps "
            f"of {training.batch_size} images, {epochs:.4g} epochs",
            f"devices: {num_devices()} ({jax.default_backend()}); memory of each: {images:.3g} MB "
            f"of images, {state:.3g} MB of weights, averages, gradients and optimizer, plus "
            "the activations of one step",
        ]

    def test_images(self) -> np.ndarray:
        """The part of the test set that is evaluated, [num, h, w, c] uint8."""
        return self.dataset.test[: self.config.evaluation.num_examples or None]

    def test_labels(self) -> np.ndarray | None:
        """The labels of `test_images`, [num]; None where the model is not conditional on them."""
        labels = self.dataset.labels
        return None if labels is None else labels.test[: len(self.test_images())]

    def uses_extension(self) -> bool:
        """Whether a part that the configuration names is defined outside this project."""
        model = self.config.model
        parts = [
            BIJECTORS.get(model.bijector),
            DATA_LAYERS.get(model.data_layer),
            PARTITIONS.get(model.partition),
            *NETWORKS.get(model.network, ()),
            SYSTEMS.get(model.system),
            DATASETS.get(self.config.dataset.name),
        ]
        packages = {part.__module__.partition(".")[0] for part in parts if part is not None}
        return not packages <= {"sere_jax", "experiments"}


def planned(
    training: Any, steps_per_epoch: int, first_total: int, restarts: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The horizon and the schedules of a training, by the names of their fields.

    Args:
        training: `config.training`.
        steps_per_epoch: optimizer steps an epoch.
        first_total: optimizer steps of the training as it was begun.
        restarts: step at which the learning rate begins anew, and for how many steps.
    """
    steps = {"steps_per_epoch": steps_per_epoch, "total_steps": first_total}
    horizon = durations.horizon_steps(training, **steps)
    steps["total_steps"] = horizon
    rate = schedules.learning_rate_schedule(training, **steps)
    for start, length in restarts:
        again = schedules.learning_rate_schedule(
            training, steps_per_epoch=steps_per_epoch, total_steps=length
        )
        rate = schedules.followed_by(rate, start, again)
    return {
        "horizon_steps": horizon,
        "learning_rate": jax.jit(rate),
        "kl_weight": jax.jit(schedules.kl_weight_schedule(training, **steps)),
    }


def create_experiment(config: Any, *, to_train: bool = True) -> Experiment:
    """Checks the configuration, loads the data and creates the model.

    Args:
        config: of the experiment.
        to_train: False where the number of devices need not divide the batch.

    Raises:
        UserError, sere_jax.ConfigError: something does not fit; nothing has been compiled.
    """
    check_configuration(config)
    commit = git_commit()
    batch_size = config.training.batch_size
    if to_train and batch_size % num_devices():
        raise UserError(
            f"config.training.batch_size={batch_size} (over all devices) is not a multiple of the "
            f"{num_devices()} devices; choose {max(1, batch_size // num_devices()) * num_devices()}"
        )
    if to_train:
        _check_pieces(config.training)
    model = sere_jax.create_model(config)
    _check_size(model)
    _check_weight_decay(config.training, model)
    dataset = load_dataset(config.dataset)
    _check_images(config, model, dataset)
    check_condition(config, dataset)
    steps_per_epoch = len(dataset.train) // batch_size
    total_steps = durations.total_training_steps(config.training, steps_per_epoch)
    return Experiment(
        config=config,
        dataset=dataset,
        model=model,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        git_commit=commit,
        **planned(config.training, steps_per_epoch, total_steps, ()),
    )


def _check_pieces(training: Any) -> None:
    device_batch = training.batch_size // num_devices()
    if device_batch % training.accumulate_steps:
        small = {n for n in range(1, math.isqrt(device_batch) + 1) if device_batch % n == 0}
        allowed = sorted(small | {device_batch // n for n in small})
        raise UserError(
            f"config.training.accumulate_steps={training.accumulate_steps} does not divide the "
            f"{device_batch} images of a device's part of the batch; choose one of "
            f"{', '.join(map(str, allowed))}"
        )


def _check_weight_decay(training: Any, model: sere_jax.LatentVariableModel) -> None:
    if training.weight_decay and model.config.flow_direct_connections:
        raise UserError(
            f"config.training.weight_decay={training.weight_decay} would shrink the linear "
            "autoregression that flow_direct_connections=True starts from, which is not trained; "
            "set it to 0, or config.model.flow_direct_connections to False"
        )
    if training.weight_decay_on == "generative" and not isinstance(model, SeReVAE):
        raise UserError(
            "config.training.weight_decay_on='generative' means nothing to "
            f"config.model.system={model.config.system!r}; choose 'all' or 'kernels', or "
            "system='sere_vae'"
        )


def _check_images(config: Any, model: sere_jax.LatentVariableModel, dataset: Dataset) -> None:
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
    num_examples = config.evaluation.num_examples
    if num_examples > len(dataset.test):
        raise UserError(
            f"config.evaluation.num_examples={num_examples} exceeds the {len(dataset.test)} test "
            f"images of {name!r}; choose at most {len(dataset.test)}, or 0 for all"
        )
    if batch_size > len(dataset.train):
        raise UserError(
            f"config.training.batch_size={batch_size} exceeds the {len(dataset.train)} training "
            f"examples of {name!r}; choose at most {len(dataset.train)}"
        )


def _check_size(model: sere_jax.LatentVariableModel) -> None:
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
