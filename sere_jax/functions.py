"""Bounds and likelihood of all models: the public functions (paper, section 3).

They take a model from `create_model`, its parameters and a key. A key is one PRNG key, or [B] keys,
one per example, so that an example's noise does not depend on its batch, whatever
`jax_default_prng_impl` is. A batch may be empty. Images x are [B, *data_shape] in data space,
arrays of any real type or lists; others raise a TypeError or ValueError. Models with a condition
(`config.condition_size`) need `condition` [B, C], which others refuse. All is computed in float32,
with parameters of fewer bits too. All densities are in nats.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sere_jax.arrays import (
    Array,
    Count,
    Images,
    Keys,
    Params,
    PerImage,
    Values,
    as_key,
    as_parameters,
    public,
)
from sere_jax.compilation import jit, right_surroundings
from sere_jax.config import choose, model_config
from sere_jax.conflicts import IAF_VAE, LADDER_VAE, RELAXED_BERNOULLI_VAE, SERE_VAE
from sere_jax.data_layer import data_space_of
from sere_jax.inputs import (
    check_bytes,
    check_condition,
    check_images,
    checked_count,
    example_keys,
    sample_noise,
)
from sere_jax.model import Inferred, LatentVariableModel, apply
from sere_jax.objectives import weighted_bounds
from sere_jax.sere_vae import SeReVAE
from sere_jax.systems.iaf_vae import InverseAutoregressiveVAE
from sere_jax.systems.ladder_vae import LadderVAE
from sere_jax.systems.relaxed_bernoulli_vae import RelaxedBernoulliVAE

SAMPLES_AT_ONCE = 10
SYSTEMS: dict[str, type[LatentVariableModel]] = {
    SERE_VAE: SeReVAE,
    LADDER_VAE: LadderVAE,
    IAF_VAE: InverseAutoregressiveVAE,
    RELAXED_BERNOULLI_VAE: RelaxedBernoulliVAE,
}


@public
def create_model(config: Any) -> LatentVariableModel:
    """The model of an experiment's configuration.

    Args:
        config: a ConfigDict (or mapping) with the field `model`, or a `ModelConfig`.

    Raises:
        ConfigError: the configuration is impossible; nothing has been compiled.
    """
    checked = model_config(config)
    model = choose("system", checked.system, SYSTEMS)(checked)
    # An abstract trace runs every constructor, so that all choices are checked here.
    with right_surroundings():  # nothing is computed
        jax.eval_shape(lambda: init(model, jax.random.key(0)))
    return model


@public
def init(model: LatentVariableModel, key: Keys, x: Values | None = None) -> Params:
    """Random parameters; those of the layers are stacked along a leading axis of length L.

    Args:
        key: a single PRNG key.
        x: [B, *data_shape], a batch of data from which the activation normalization of flows
            starts; without it, and with a single image, it starts as the identity. The whitening of
            `flow_direct_connections` is fixed by x for good: give many more images than values.

    Raises:
        ValueError: x has the wrong shape or holds no image, or there is more than one key.
    """
    x = jnp.zeros((1, *model.config.data_shape)) if x is None else check_images(model, x)
    if not len(x):
        raise ValueError(f"x has the shape {x.shape}, no image to start from; leave x out")
    own_key = as_key(key)
    if own_key.ndim:
        raise ValueError(f"key holds {len(own_key)} keys; init takes a single one")
    return _init(model, own_key, x)


@jit(static_argnums=0, optimize=False)
def _init(model: LatentVariableModel, key: Array, x: Array) -> Params:
    num_layers, *event_shape = model.noise_shape
    size = model.config.condition_size
    given: dict[str, Any] = {"condition": jnp.zeros((len(x), size))} if size else {}
    return model.init(key, x, jnp.zeros((num_layers, len(x), *event_shape)), **given)["params"]


@public
def to_data_space(
    model: LatentVariableModel, images: Values, key: Keys, max_value: Count = 255
) -> Images:
    """Images of integers as the x that the model's data layer takes.

    Binarized at random (`bernoulli`), dequantized (`gaussian`, flows; the latter in logit space) or
    as they are (`discretized_logistic_mixture`).

    Args:
        images: [B, *data_shape] uint8 in 0..max_value.
        max_value: the value of white, 1 to 255.

    Raises:
        TypeError: the images are not uint8, or `max_value` is no integer.
        ValueError: they have the wrong shape or values above `max_value`, or the data layer models
            images of another `max_value`.
    """
    checked, white = check_bytes(model, images, max_value)
    keys = example_keys(as_key(key), len(checked))
    return data_space_of(model.config).from_images(jnp.asarray(checked), keys, white)


@public
def to_pixels(model: LatentVariableModel, x: Values) -> Images:
    """x in data space, or expectations of it, as grey levels or colours in [0, 1], for pictures.

    Args:
        x: [B, *data_shape].

    Returns:
        [B, *data_shape] float32.

    Raises:
        TypeError: x holds no real numbers.
        ValueError: x has the wrong shape, or values outside of the data space.
    """
    x = check_images(model, x, may_be_expected=True)
    return data_space_of(model.config).to_pixels(x)


@public
def infer(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    key: Keys,
    *,
    condition: Values | None = None,
) -> Inferred:
    """Everything the model infers of x with one sample of the codes.

    Args:
        x: [B, *data_shape] in data space.
        key: PRNG key, or [B] keys.
        condition: [B, C], if the model has one.

    Returns:
        An `Inference`; of other systems than the SeRe-VAE a `LadderInference`, `SampledInference`
        or `RelaxedBernoulliInference`. Densities are in nats.

    Raises:
        ValueError: x or `condition` has the wrong shape.
    """
    x = check_images(model, x)
    condition = check_condition(model, condition, len(x))
    return _infer(model, as_parameters(params), x, as_key(key), condition)


@jit(static_argnums=0)
def _infer(
    model: LatentVariableModel, params: Params, x: Array, key: Array, condition: Array | None
) -> Inferred:
    noise = sample_noise(model, example_keys(key, len(x)), 0)
    return apply(model, params, x, noise, condition=condition)


@public
def elbo(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    key: Keys,
    *,
    condition: Values | None = None,
) -> PerImage:
    """Evidence lower bound log p(x | z) - KL with one sample of z (paper, Eq. 9).

    To evaluate; `objective` is what trainings maximize, with dropout and a weight of the KL.

    Args:
        x: [B, *data_shape] in data space.
        key: PRNG key, or [B] keys.
        condition: [B, C], if the model has one.

    Returns:
        [B] in nats.

    Raises:
        ValueError: x or `condition` has the wrong shape.
    """
    x = check_images(model, x)
    condition = check_condition(model, condition, len(x))
    return _elbo(model, as_parameters(params), x, as_key(key), condition)


@jit(static_argnums=0)
def _elbo(
    model: LatentVariableModel, params: Params, x: Array, key: Array, condition: Array | None
) -> Array:
    noise = sample_noise(model, example_keys(key, len(x)), 0)
    log_likelihood, kl = apply(model, params, x, noise, method="elbo_terms", condition=condition)
    return log_likelihood - jnp.sum(kl, axis=-1)


@public
def log_likelihood(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    key: Keys,
    num_samples: Count = 1000,
    *,
    samples_at_once: Count = SAMPLES_AT_ONCE,
    condition: Values | None = None,
) -> PerImage:
    """Importance-weighted estimate of log p(x) in nats (Burda et al. 2016, Eq. 8).

    log (1/K Σ_k p(x, z_k) / q(z_k | x)), a lower bound in expectation that rises with the number of
    samples K. The encoders run once per image and the samples are streamed, so that memory does not
    grow with K. Without latents (a plain flow) log p(x) is exact, whatever K and the key are.

    Args:
        x: [B, *data_shape] in data space.
        key: PRNG key, or [B] keys.
        num_samples: K.
        samples_at_once: how many samples of each image are computed at once. Memory grows with it,
            and results depend on it by rounding alone.
        condition: [B, C], if the model has one.

    Returns:
        [B] in nats.

    Raises:
        TypeError: one of the two numbers is no integer.
        ValueError: x or the condition has the wrong shape, or one of the two numbers is below 1.
    """
    options: dict[str, Any] = {"samples_at_once": samples_at_once, "condition": condition}
    return likelihood_and_elbo(model, params, x, key, num_samples, **options)[0]


@public
def likelihood_and_elbo(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    key: Keys,
    num_samples: Count = 1000,
    *,
    samples_at_once: Count = SAMPLES_AT_ONCE,
    condition: Values | None = None,
) -> tuple[PerImage, PerImage]:
    """`log_likelihood`, and the ELBO of the same samples: the mean of log (p(x, z_k) / q(z_k | x)).

    So of each image the ELBO is at most the likelihood, however few the samples are. Arguments and
    errors are those of `log_likelihood`.

    Returns:
        Both in nats, [B]: the estimate of log p(x), then the ELBO.
    """
    x = check_images(model, x)
    condition = check_condition(model, condition, len(x))
    num_samples = checked_count("num_samples", num_samples)
    num_samples = num_samples if model.config.has_latents else 1
    chunk = min(num_samples, checked_count("samples_at_once", samples_at_once))
    params = as_parameters(params)
    return _log_likelihood(model, params, x, as_key(key), num_samples, chunk, condition)


@jit(static_argnums=(0, 4, 5))
def _log_likelihood(
    model: LatentVariableModel,
    params: Params,
    x: Array,
    key: Array,
    num_samples: int,
    chunk: int,
    condition: Array | None,
) -> tuple[Array, Array]:
    keys = example_keys(key, len(x))
    observed = apply(model, params, x, method="observe", condition=condition)
    return weighted_bounds(model, params, x, observed, keys, num_samples, chunk)
