"""Training images of the dispatches: on the devices, or read while they compute."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.data import Dataset
from experiments.data.stored import copy_images
from experiments.distributed.devices import (
    memory_of_device,
    num_devices,
    part_of_process,
    replicate,
)
from experiments.training.step import StepSettings, order_of_epoch

# Images that take more are streamed where `config.dataset.placement` is "auto".
SHARE_OF_DEVICE = 0.5  # of its memory
MOST_BYTES_ON_CPU = 1e9  # where devices do not say how much they have

Spans = Iterator[tuple[int, int]]  # first step and number of steps of dispatches
Examples = Iterator[tuple[int, tuple[Any, ...]]]  # number of steps; images, and labels if any


def most_bytes_resident() -> float:
    """What images may take of a device."""
    memory = memory_of_device()
    return MOST_BYTES_ON_CPU if memory is None else SHARE_OF_DEVICE * memory


def resident_examples(dataset: Dataset, steps: Spans) -> Examples:
    """All training images, on each device, for each of the dispatches."""
    labels = dataset.labels
    parts = (dataset.train,) if labels is None else (dataset.train, labels.train)
    resident = tuple(replicate(np.asarray(part)) for part in parts)
    return ((num_steps, resident) for _, num_steps in steps)


class TrainingStream:
    """What `step.dispatch` takes where images are streamed: those of its batches, in their order.

    Of each batch this process reads what its own devices take.

    Args:
        settings: of the step.
        dataset: whose training images, and labels if the step has some, are read.
        key: the raw key of the run, of its state.
        most_steps: of a dispatch.
    """

    def __init__(self, settings: StepSettings, dataset: Dataset, key: np.ndarray, most_steps: int):
        self._settings, self._dataset, self._most_steps = settings, dataset, most_steps
        order = jax.jit(functools.partial(order_of_epoch, settings))
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: np.asarray(order(key, epoch * settings.steps_per_epoch))
        )

    def read(self, span: tuple[int, int]) -> tuple[int, tuple[np.ndarray, ...]]:
        """The number of steps of a dispatch, its images and, if there are any, its labels.

        Images are [local devices, num, h, w, c], where `num` is that of `most_steps`; what is
        beyond the span is not set.

        Args:
            span: the first step of the dispatch, and its number of steps, which do not cross the
                end of an epoch.
        """
        places = self._places(*span)
        labels = self._dataset.labels
        parts: list[Any] = [self._dataset.train]
        if self._settings.has_labels and labels is not None:
            parts.append(labels.train)
        return span[1], tuple(self._take(values, places) for values in parts)

    def _places(self, start: int, num_steps: int) -> np.ndarray:
        """Where the images of each local device are in the training set, [local devices, num]."""
        batch_size = self._settings.training.batch_size
        epoch, step = divmod(start, self._settings.steps_per_epoch)
        order = self._order(epoch)[step * batch_size : (step + num_steps) * batch_size]
        by_step = order.reshape(num_steps, num_devices(), -1)
        own = part_of_process(by_step.swapaxes(0, 1).reshape(-1))
        return own.reshape(jax.local_device_count(), -1)

    def _take(self, values: Any, places: np.ndarray) -> np.ndarray:
        num = self._most_steps * self._settings.training.batch_size // num_devices()
        out = np.empty((len(places), num, *values.shape[1:]), values.dtype)
        for part, indices in zip(out, places, strict=True):
            copy_images(values, indices, part[: len(indices)])
        return out


def spans(first_step: int, last_step: int, intervals: list[int]) -> Spans:
    """First step and number of steps of each dispatch; none crosses a multiple of an interval."""
    step = first_step
    while step < last_step:
        num_steps = min(interval - step % interval for interval in intervals)
        yield step, num_steps
        step += num_steps
