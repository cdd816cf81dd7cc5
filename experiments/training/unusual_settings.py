"""What a configuration may ask for, but seldom means to."""

import math
from collections.abc import Iterator

import numpy as np

from experiments.settings.durations import is_longer_than_zero
from experiments.training.experiment import NUM_VOLUME_IMAGES, Experiment
from sere_jax.data_layer import data_space_of
from sere_jax.data_space import binarize

MANY_GREY_PIXELS = 0.5  # photographs have 0.8, digits of 8 x 8 pixels 0.35


def unusual_settings(experiment: Experiment) -> list[str]:
    """What to tell the user of a training, a sentence each."""
    return [
        *_of_pixels(experiment),
        *_of_durations(experiment),
        *_of_initial_weights(experiment),
        *_of_the_best(experiment),
    ]


def _of_pixels(experiment: Experiment) -> Iterator[str]:
    if data_space_of(experiment.model.config).from_images is not binarize:
        return
    dataset = experiment.dataset
    images = np.asarray(dataset.train[:NUM_VOLUME_IMAGES]) / dataset.max_value
    share = float(np.mean((images > 0.1) & (images < 0.9)))
    if share >= MANY_GREY_PIXELS:
        yield (
            f"{share:.0%} of the pixels of {dataset.name!r} are neither black nor white, "
            f"and config.model.data_layer={experiment.config.model.data_layer!r} draws each as "
            "black or white; 'discretized_logistic_mixture' models 256 levels, 'gaussian' "
            "dequantized ones"
        )


def _of_durations(experiment: Experiment) -> Iterator[str]:
    for field, outcome in {
        "kl_warmup": "the KL never gets its full weight",
        "importance_weighted_from": "only the ELBO is trained",
    }.items():
        steps = experiment.duration_in_steps("training", field)
        if steps > 0 and steps >= experiment.total_steps:
            yield (
                f"config.training.{field}={experiment.config.training[field]!r} is no shorter than "
                f"the training of {experiment.total_steps} steps: {outcome}"
            )


def _of_initial_weights(experiment: Experiment) -> Iterator[str]:
    training = experiment.config.training
    warms_up = experiment.duration_in_steps("training", "kl_warmup") > 0
    if training.initial_weights and warms_up and training.kl_weight_start < 1:
        yield (
            f"config.training.initial_weights={training.initial_weights!r} are trained, and "
            f"config.training.kl_warmup={training.kl_warmup!r} begins again with a weight of "
            f"{training.kl_weight_start:g} of the KL; kl_warmup='0 steps' keeps it at 1"
        )


def _of_the_best(experiment: Experiment) -> Iterator[str]:
    config = experiment.config
    if config.evaluation.checkpoint != "best" or not len(experiment.dataset.validation):
        return
    training = config.training
    evaluate = experiment.interval_in_steps("training", "evaluate_every")
    save = experiment.interval_in_steps("training", "checkpoint_every")
    if max(evaluate, save) % min(evaluate, save):
        yield (
            "config.evaluation.checkpoint='best' is the best of those checkpoints that are "
            f"evaluated: with config.training.evaluate_every={training.evaluate_every!r} and "
            f"checkpoint_every={training.checkpoint_every!r} every "
            f"{math.lcm(evaluate, save)} steps; let one be a multiple of the other"
        )
    begins = training.importance_weighted_from
    if is_longer_than_zero(begins):
        yield (
            f"config.training.importance_weighted_from={begins!r} may lower the ELBO, and "
            "config.evaluation.checkpoint='best' is that of the highest ELBO; 'last' has the "
            "whole training"
        )
