"""Everything that follows from a configuration: data, model, schedules, number of steps."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sere_jax
from experiments.data import DATASETS, Dataset, input_pipeline, load_dataset
from experiments.data.condition import check_condition
from experiments.data.stored import Images
from experiments.distributed.devices import num_devices, replicate
from experiments.distributed.processes import any_process
from experiments.optimization import schedules
from experiments.settings import durations
from experiments.settings.checks import check_configuration
from experiments.system.ahead import ahead
from experiments.system.errors import UserError
from experiments.system.git import git_commit
from experiments.training import stream
from experiments.training.evaluation import Evaluator, bits_per_dim
from experiments.training.requirements import (
    check_images,
    check_pieces,
    check_size,
    check_weight_decay,
)
from experiments.training.state import TrainState, count_parameters, init_state, state_template
from experiments.training.step import StepSettings, create_train_dispatch
from sere_jax.bijector import BIJECTORS
from sere_jax.compilation import jit
from sere_jax.data_layer import DATA_LAYERS
from sere_jax.functions import SYSTEMS
from sere_jax.networks.family import NETWORKS
from sere_jax.partition import PARTITIONS

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
            images = jnp.asarray(np.asarray(self.dataset.train[:num_images]))
            x, _ = self.evaluator.to_data_space(images, jnp.arange(len(images)), "train")
        create = functools.partial(init_state, self.model, self.optimizer, self.config.seed)
        return jit(create, optimize=False)(x)

    def state_template(self) -> TrainState:
        """See `training.state.state_template`."""
        return state_template(self.model, self.optimizer, self.config.seed)

    @functools.cached_property
    def step_settings(self) -> StepSettings:
        """What an update depends on."""
        return StepSettings(
            model=self.model,
            optimizer=self.optimizer,
            training=self.config.training,
            kl_weight=self.kl_weight,
            augment=self.augmentation(),
            num_examples=len(self.dataset.train),
            max_value=self.dataset.max_value,
            importance_weighted_from=self.duration_in_steps("training", "importance_weighted_from"),
            has_labels=self.dataset.labels is not None,
            is_streamed=self.is_streamed,
        )

    def create_train_dispatch(self) -> Callable:
        """See `training.step.create_train_dispatch`."""
        return create_train_dispatch(self.step_settings)

    @functools.cached_property
    def is_streamed(self) -> bool:
        """Whether images stay where they are and are read as they are needed, not all on devices.

        The same in all processes, which have to ask at the same time.
        """
        if self.config.dataset.placement != "auto":
            return self.config.dataset.placement == "stream"
        return any_process(self._bytes_of_images > stream.most_bytes_resident())

    @property
    def _bytes_of_images(self) -> int:
        parts = (self.dataset.train, self.dataset.validation, self.evaluated_images())
        return sum(images.nbytes for images in parts)

    def place(self, images: Images) -> Images | jax.Array:
        """The images of a split for `evaluator`: on the devices, or as they are."""
        return images if self.is_streamed else replicate(np.asarray(images))

    def intervals(self) -> list[int]:
        """Numbers of steps at whose multiples a dispatch ends."""
        names = [("training", "evaluate_every"), ("training", "checkpoint_every")]
        if self.config.evaluation.test_elbo_every:
            names.append(("evaluation", "test_elbo_every"))
        return [
            self.steps_per_epoch,
            self.config.training.steps_per_dispatch,
            *(self.interval_in_steps(*name) for name in names),
            self.total_steps,
        ]

    def examples(self, step: int, key: Any) -> Iterator[tuple[int, tuple]]:
        """For each dispatch from `step` on its number of steps, and images and labels for it.

        `key` is that of the state.
        """
        steps = stream.spans(step, self.total_steps, self.intervals())
        if not self.is_streamed:
            return stream.resident_examples(self.dataset, steps)
        most = min(self.intervals())
        return ahead(stream.TrainingStream(self.step_settings, self.dataset, key, most).read, steps)

    def augmentation(self) -> Callable:
        """See `input_pipeline.augmentation`."""
        until = self.duration_in_steps("dataset", "random_affine_until")
        return input_pipeline.augmentation(self.config.dataset, until, self.dataset.max_value)

    def bits_per_dim(self, nll: float, split: str) -> float:
        """Bits per value of an image; see `evaluation.bits_per_dim`.

        Args:
            nll: mean -log p(x) in nats, in the data space of the model.
            split: "train", "validation" or "test", the images that it is the mean of; or
                "evaluated", those of `evaluated_images`.
        """
        max_value = self.dataset.max_value
        return bits_per_dim(nll, self.model.config, max_value, self._log_volume(split))

    def _log_volume(self, split: str) -> float:
        """Of "train" that of its first images; all would differ by thousandths of a bit/dim."""
        if split == "test":  # training logs its ELBO only where it is evaluated
            split = "evaluated"
        if split not in self._log_volumes:
            name, images = {
                "train": ("train", self.dataset.train[:NUM_VOLUME_IMAGES]),
                "validation": ("validation", self.dataset.validation),
                "evaluated": (self.config.evaluation.split, self.evaluated_images()),
            }[split]
            self._log_volumes[split] = self.evaluator.log_volume(images, name)
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
        params = count_parameters(self.state_template().params)
        images = f"{self._bytes_of_images / 1e6:.3g} MB of images"
        if self.is_streamed:
            num = min(self.intervals()) * training.batch_size // num_devices()
            of_dispatch = num * math.prod(dataset.image_shape) / 1e6
            images = f"two dispatches of {of_dispatch:.3g} MB, streamed from {images}"
        shape = "x".join(map(str, dataset.image_shape))
        purpose = "to test" if self.config.evaluation.split == "test" else "of these to evaluate"
        evaluated = f"{len(self.evaluated_images())} {purpose}"
        epochs = self.total_steps / self.steps_per_epoch
        return [
            f"data: {len(dataset.train)} images of {dataset.name!r} to train, "
            f"{len(dataset.validation)} to validate, {evaluated}, {shape}",
            f"model: {self.model.config.system}, {params:,} parameters; {self.total_steps} steps "
            f"of {training.batch_size} images, {epochs:.4g} epochs",
            f"devices: {num_devices()} ({jax.default_backend()}); memory of each: {images}, "
            f"{20e-6 * params:.3g} MB of weights, averages, gradients and optimizer, plus "
            "the activations of one step",
        ]

    def evaluated_images(self) -> Images:
        """The images of `config.evaluation.split` that are evaluated, [num, h, w, c] uint8."""
        images = getattr(self.dataset, self.config.evaluation.split)
        return images[: self.config.evaluation.num_examples or None]

    def evaluated_labels(self) -> np.ndarray | None:
        """Theirs, [num]; None where the model is not conditional on them."""
        labels = self.dataset.labels
        if labels is None:
            return None
        return getattr(labels, self.config.evaluation.split)[: len(self.evaluated_images())]

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
        check_pieces(config.training)
    model = sere_jax.create_model(config)
    check_size(model)
    check_weight_decay(config.training, model)
    dataset = load_dataset(config.dataset, tuple(config.model.data_shape))
    check_images(config, model, dataset)
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
