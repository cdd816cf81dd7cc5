"""ELBO and importance-weighted likelihood over a whole split, on all devices."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sere_jax
from experiments.data.condition import condition_rows
from experiments.data.stored import StoredImages
from experiments.distributed.devices import (
    DEVICES,
    num_devices,
    num_processes,
    parallelize,
    part_of_process,
)
from experiments.system.ahead import ahead
from experiments.training.keys import key_for, purpose_of
from sere_jax.config import ModelConfig
from sere_jax.data_layer import data_space_of
from sere_jax.functions import SAMPLES_AT_ONCE, likelihood_and_elbo

Array = jax.Array
Images = jax.Array | np.ndarray | StoredImages
Labels = jax.Array | np.ndarray
Progress = Callable[[int, float], None]

# The ELBO takes a single sample of the codes of each image, so that more images fit.
ELBO_IMAGES_PER_IMAGE = 5
VOLUME_BATCH_SIZE = 500


@dataclasses.dataclass(frozen=True)
class Elbo:
    """The ELBO of images in nats, float64."""

    log_likelihood: np.ndarray  # [num], log p(x | z)
    kl: np.ndarray  # [num, L]

    @property
    def per_image(self) -> np.ndarray:
        """log p(x | z) - KL, [num]."""
        return self.log_likelihood - self.kl.sum(axis=1)

    def means(self) -> dict[str, Any]:
        """Exact means over all images, in nats."""
        return {
            "elbo": float(self.per_image.mean()),
            "elbo_stderr": standard_error(self.per_image),
            "log_likelihood": float(self.log_likelihood.mean()),
            "kl": float(self.kl.sum(axis=1).mean()),
            "kl_per_layer": [float(value) for value in self.kl.mean(axis=0)],
        }


class Evaluator:
    """Compiled evaluation of one model on images of one kind.

    Images that are on the devices stay there; of others the batches are read, each while the one
    before is computed.

    Every example's binarization and noise are keyed by its split ("train", "validation" or "test")
    and its index there, so that results depend neither on the batch size nor on the number of
    devices, and every run is measured on the same binarized images, whatever its seed.

    Args:
        model: from `sere_jax.create_model`.
        max_value: largest pixel value of the images.
        batch_size: images at once on one device, for the importance-weighted likelihood.
        num_importance_samples: K.
        samples_at_once: how many of them, of each of these images.
    """

    def __init__(
        self,
        model: sere_jax.LatentVariableModel,
        *,
        max_value: int,
        batch_size: int,
        num_importance_samples: int,
        samples_at_once: int = SAMPLES_AT_ONCE,
    ):
        self._model = model
        self._max_value = max_value
        self._batch_size = batch_size

        def all_devices(local):
            return jax.lax.all_gather(local, DEVICES, tiled=True)

        def elbo_terms(params, images, rows, labels, indices, split_key):
            x, keys, given = self._batch(images, rows, labels, indices, split_key)
            inference = sere_jax.infer(model, params, x, keys, **given)
            return all_devices((inference.log_likelihood, inference.kl))

        def log_likelihood(params, images, rows, labels, indices, split_key):
            x, keys, given = self._batch(images, rows, labels, indices, split_key)
            given["samples_at_once"] = samples_at_once
            return all_devices(
                likelihood_and_elbo(model, params, x, keys, num_importance_samples, **given)
            )

        self._elbo_terms = parallelize(elbo_terms, num_arguments=6)
        self._log_likelihood = parallelize(log_likelihood, num_arguments=6)

    def to_data_space(
        self, images: Images, indices: Array | np.ndarray, split: str = "test"
    ) -> tuple[Array, Array]:
        """What the model is evaluated on.

        Args:
            images: [num, h, w, c] uint8, a whole split.
            indices: [B], which of them.
            split: "train", "validation" or "test".

        Returns:
            x [B, h, w, c] in data space, and [B] keys for the model's noise.
        """
        return self._to_data_space(images[indices], indices, key_for(purpose_of(split)))

    def _to_data_space(self, images, indices, split_key):
        keys = jax.vmap(lambda i: jax.random.fold_in(split_key, i))(indices)
        data_keys, model_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = sere_jax.to_data_space(self._model, images, data_keys, self._max_value)
        return x, model_keys

    def _batch(self, images, rows, labels, indices, split_key):
        device = jax.lax.axis_index(DEVICES)
        rows, indices = (each.reshape(num_devices(), -1)[device] for each in (rows, indices))
        labels = None if labels is None else labels[indices]
        condition = condition_rows(labels, len(indices), self._model.config.condition_size)
        x, keys = self._to_data_space(images[rows], indices, split_key)
        return x, keys, {"condition": condition}

    def elbo(
        self, params: Any, images: Images, split: str = "test", labels: Labels | None = None
    ) -> Elbo:
        """Both parts of the ELBO of each of the images.

        Args:
            params: parameters (averaged ones, as a rule).
            images: [num, h, w, c] uint8.
            split: the one that they are.
            labels: [num], those of the images, if the model is conditional on them.
        """
        batch_size = min(ELBO_IMAGES_PER_IMAGE * self._batch_size, -(-len(images) // num_devices()))
        parts = [
            jax.tree.map(
                np.float64,
                self._elbo_terms(params, batch, rows, labels, indices, key_for(purpose_of(split))),
            )
            for batch, rows, indices in _batches(images, batch_size * num_devices())
        ]
        log_likelihood, kl = (
            np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True)
        )
        return Elbo(log_likelihood, kl)

    def log_volume(self, images: Images, split: str = "test") -> float:
        """What turns a mean log-density in data space into one of pixels v in [0, 1], in nats.

        It is the mean of log|dx/dv| over images as they are evaluated: 0 but in the logit space of
        flows, and in others that have a `log_det`.

        Args:
            images: [num, h, w, c] uint8.
            split: the one that they are.
        """
        log_det = data_space_of(self._model.config).log_det
        if log_det is None:
            return 0.0

        @jax.jit
        def of_batch(images, rows, indices):
            x, _ = self._to_data_space(images[rows], indices, key_for(purpose_of(split)))
            return jnp.sum(log_det(x), axis=(1, 2, 3))

        batch_size = min(VOLUME_BATCH_SIZE, len(images))
        # Each process reads all of them, and comes to the same mean.
        volumes = [
            np.float64(of_batch(images[indices], np.arange(batch_size), indices))
            for indices in _indices(len(images), batch_size)
        ]
        return float(np.concatenate(volumes)[: len(images)].mean())

    def log_likelihood(
        self,
        params: Any,
        images: Images,
        progress: Progress | None = None,
        *,
        split: str = "test",
        labels: Labels | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Importance-weighted log p(x) of each of the images, and the ELBO of the same samples.

        Args:
            params: parameters (averaged ones, as a rule).
            images: [num, h, w, c] uint8.
            progress: called after each batch with the number of its images and the mean so far.
            split: the one that the images are.
            labels: [num], those of the images, if the model is conditional on them.

        Returns:
            [num] and [num] nats, float64; of no image is the ELBO above log p(x).
        """
        parts = []
        done = 0
        total = 0.0
        batch_size = min(self._batch_size, -(-len(images) // num_devices()))
        for batch, rows, indices in _batches(images, batch_size * num_devices()):
            bounds = self._log_likelihood(
                params, batch, rows, labels, indices, key_for(purpose_of(split))
            )
            part = np.asarray(bounds, np.float64)[:, : len(images) - done]
            done += part.shape[1]
            total += float(part[0].sum())
            parts.append(part)
            if progress is not None:
                progress(part.shape[1], total / done)
        log_likelihood, elbo = np.concatenate(parts, axis=1)
        return log_likelihood, elbo


def bits_per_dim(nll: float, config: ModelConfig, max_value: int, log_volume: float = 0.0) -> float:
    """Bits per value of an image.

    nll / (D log 2), and log2(max_value + 1) more for a density of dequantized values v in [0, 1],
    of whose images it is an upper bound.
    In the logit space of flows, x = logit(α + (1 - 2α) v), the change of variables comes on top
    (Papamakarios et al. 2017, appendix D; `sere_jax.logit_log_det`): with 256 values,

        -log p(x) / (D log 2) - log2(1 - 2α) + 8 + 1/D Σ_i (log2 σ(x_i) + log2(1 - σ(x_i))).

    Args:
        nll: mean -log p(x) in nats of an image, in the data space of the model.
        config: of the model.
        max_value: largest pixel value of the images.
        log_volume: `Evaluator.log_volume` of the same images, in nats.
    """
    bits = (nll - log_volume) / (math.prod(config.data_shape) * math.log(2))
    return bits + math.log2(max_value + 1) if data_space_of(config).is_density else bits


def bits_of_noise(config: ModelConfig, max_value: int) -> float:
    """Bits per value of an image for a model to which all images are equally likely."""
    space = data_space_of(config)
    if space.is_density or space.limits is None:
        return math.log2(max_value + 1)
    least, largest = space.limits
    return math.log2(largest - least + 1)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of values [num]."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _batches(images: Images, batch_size: int) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Images, of which this process needs the rows [batch_size], those of `_indices`; and these."""
    all_indices = _indices(len(images), batch_size)
    if isinstance(images, jax.Array):
        return ((images, indices, indices) for indices in all_indices)

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        own = part_of_process(indices)
        return images[own], np.tile(np.arange(len(own)), num_processes()), indices

    return ahead(read, all_indices)


def _indices(num_examples: int, batch_size: int) -> Iterator[np.ndarray]:
    """Indices [batch_size] that cover 0 .. num_examples - 1; the last batch repeats the last."""
    for start in range(0, num_examples, batch_size):
        yield np.minimum(np.arange(start, start + batch_size), num_examples - 1)
