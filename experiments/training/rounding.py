"""What a model loses when its weights are rounded to fewer bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sere_jax
from experiments.data.condition import condition_rows
from experiments.training.evaluation import standard_error

NUM_IMAGES, NUM_SAMPLES = 100, 50


def rounded(params: Any, dtype: str) -> Any:
    """Parameters as float32 that went through `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype).astype(jnp.float32), params)


def loss_by_rounding(
    model: sere_jax.LatentVariableModel, params: Any, dtype: str, config: Any
) -> tuple[float, float]:
    """Nats an image that weights rounded to `dtype` lose, and the standard error.

    The mean of log p(x) - log p_rounded(x) over `NUM_IMAGES` images that the model with float32
    weights draws, an estimate of the KL of the two models, which needs no data set. Both
    likelihoods take the same `NUM_SAMPLES` importance samples. With labels, image i is of class i
    modulo their number.
    """
    size = model.config.condition_size
    labels = np.arange(NUM_IMAGES) % size if config.dataset.condition == "label" else None
    given: dict[str, Any] = {"condition": condition_rows(labels, NUM_IMAGES, size)}
    x = sere_jax.sample(model, params, jax.random.key(0), NUM_IMAGES, **given)
    of_both = [
        sere_jax.log_likelihood(model, weights, x, jax.random.key(1), NUM_SAMPLES, **given)
        for weights in (params, rounded(params, dtype))
    ]
    difference = np.subtract(*map(np.asarray, of_both)).astype(np.float64)
    return float(difference.mean()), standard_error(difference)
