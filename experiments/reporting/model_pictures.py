"""Pictures of what a model has learned, and the curves of its training, in the run folder."""

import math
import pathlib
from typing import Any

import jax
import numpy as np

import sere_jax
from experiments.data.condition import condition_rows
from experiments.reporting import charts, sheets
from experiments.reporting.code_pictures import (
    pixels,
    save_completions,
    save_traversals,
    three_or_one,
)
from experiments.run_folder.metrics import read_metrics
from experiments.training.experiment import Experiment
from sere_jax.partition import create_partition

Array = jax.Array
NUM_PATHS, IMAGES_OF_A_PATH = 5, 10  # of the figure of interpolations
MOST_COLUMNS = 20  # of the sheet of samples, that classes have to themselves


def save_pictures(
    experiment: Experiment, params: Any, kl: np.ndarray, workdir: pathlib.Path
) -> None:
    """Draws samples and real images; of a model with codes also what its codes do, and KLs.

    `kl` [num, L], in nats, is that of the images evaluated. With `sampling.num_images=0` the chart
    of KLs is all.
    """
    model = experiment.model
    if model.config.has_latents:
        history = charts.kl_history(read_metrics(workdir))
        charts.save_kl_per_layer(kl.mean(axis=0), workdir / "kl_per_layer.png", history=history)
    if not experiment.config.sampling.num_images:
        return
    save_samples(model, params, experiment.config, workdir)
    _save_real_images(experiment, workdir)
    if not model.config.has_latents:
        return
    images, split = experiment.evaluated_images()[:16], experiment.config.evaluation.split
    x, keys = experiment.evaluator.to_data_space(images, np.arange(len(images)), split)
    labels = experiment.evaluated_labels()
    labels = None if labels is None else labels[: len(images)]
    condition = condition_rows(labels, len(images), model.config.condition_size)
    _save_reconstructions(model, params, x, keys, condition, workdir)
    key = jax.random.key(experiment.config.sampling.seed)
    _save_interpolation(model, params, x, key, condition, workdir)
    save_traversals(model, params, x, key, condition, kl.mean(axis=0), workdir)
    num_steps = experiment.config.sampling.completion_steps
    if num_steps:
        save_completions(model, params, x, key, condition, num_steps, workdir)


def save_samples(
    model: sere_jax.LatentVariableModel, params: Any, config: Any, workdir: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Draws samples, as most papers do by their expectations, and how layers build them up.

    With labels, sample i is of class i modulo their number, and each class a column of the sheet.

    Returns:
        The samples and their expectations, [num, h, w, c] in data space.
    """
    num, size = config.sampling.num_images, model.config.condition_size
    labels = np.arange(num) % size if config.dataset.condition == "label" else None
    condition = condition_rows(labels, num, size)
    key = jax.random.key(config.sampling.seed)
    images, expected = (
        np.asarray(
            sere_jax.sample(model, params, key, num, expected=as_expected, condition=condition)
        )
        for as_expected in (False, True)
    )
    pictures = pixels(model, expected)
    num_columns = None if labels is None or size > MOST_COLUMNS else size
    sheets.save_image_grid(pictures, workdir / "samples.png", num_columns=num_columns)
    if model.generates_blocks:
        layer_of_pixel = create_partition(model.config).layer_of_pixel
        num = min(8, max(3, model.config.num_layers))
        sheets.save_build_up(pictures[:num], layer_of_pixel, workdir / "build_up.png")
    return images, expected


def _save_real_images(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Images as they are in the data set, in the places of the samples of their classes."""
    images, labels = experiment.evaluated_images(), experiment.evaluated_labels()
    num, size = experiment.config.sampling.num_images, experiment.model.config.condition_size
    chosen, num_columns = np.arange(min(num, len(images))), math.ceil(math.sqrt(num))
    if labels is not None and size <= MOST_COLUMNS:
        of_classes = [np.flatnonzero(labels == label) for label in range(size)]
        num_rows = min(-(-num // size), *map(len, of_classes))
        if num_rows:
            chosen = np.stack([places[:num_rows] for places in of_classes], axis=1).ravel()
            num_columns = size
    pictures = images[chosen].astype(np.float32) / experiment.dataset.max_value
    path = workdir / "real_images.png"
    sheets.save_image_grid(three_or_one(pictures), path, num_columns=num_columns)


def save_curves(workdir: pathlib.Path) -> None:
    """Draws the learning curves of a run, if it has logged anything."""
    records = read_metrics(workdir)
    if records:
        charts.save_learning_curves(records, workdir / "learning_curves.png")


def _save_reconstructions(
    model: sere_jax.LatentVariableModel,
    params: Any,
    x: Array,
    keys: Array,
    condition: Array | None,
    workdir: pathlib.Path,
) -> None:
    """Images above their reconstructions, and above those without the data layers' residual."""

    def reconstruct(**options):
        options |= {"expected": True, "condition": condition}
        images = sere_jax.reconstruct(model, params, x, keys, **options)
        return pixels(model, images)

    versions = {"original": pixels(model, x), "reconstruction": reconstruct()}
    sheets.save_comparison(versions, workdir / "reconstructions.png")
    if model.generates_blocks and model.config.couple_data:
        versions["without δγ"] = reconstruct(residual=False)
        sheets.save_comparison(versions, workdir / "residual_layers.png")


def _save_interpolation(
    model: sere_jax.LatentVariableModel,
    params: Any,
    x: Array,
    key: Array,
    condition: Array | None,
    workdir: pathlib.Path,
) -> None:
    """A row for each of some pairs of images, from the first one's codes to the second one's."""

    def path(first: int) -> Array:
        given = None if condition is None else condition[first : first + 2]
        ends = x[first], x[first + 1], key
        return sere_jax.interpolate(model, params, *ends, IMAGES_OF_A_PATH, condition=given)

    paths = [path(first) for first in range(0, min(len(x) - 1, 2 * NUM_PATHS), 2)]
    if paths:
        pictures = pixels(model, np.concatenate(paths))
        sheets.save_image_grid(
            pictures, workdir / "interpolation.png", num_columns=IMAGES_OF_A_PATH
        )
