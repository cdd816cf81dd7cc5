"""Bounds, likelihood and sampling of all models: the public functions (paper, section 3).

The public functions take a model from `create_model`, its parameters and a key. A key is one PRNG
key, or [B] keys, one per example, so that an example's noise does not depend on its batch, whatever
`jax_default_prng_impl` is. A batch may be empty. Images are arrays of any real type, or lists; all
is computed in float32, with parameters of fewer bits too. All densities are in nats.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sere_jax.arrays import (
    as_array,
    as_floats,
    as_key,
    as_parameters,
    check_values,
    public,
)
from sere_jax.compilation import jit, right_surroundings
from sere_jax.config import choose, model_config, python_value
from sere_jax.data_layer import data_space_of
from sere_jax.model import LatentVariableModel
from sere_jax.sere_vae import SeReVAE
from sere_jax.systems.iaf_vae import InverseAutoregressiveVAE
from sere_jax.systems.ladder_vae import LadderVAE
from sere_jax.systems.relaxed_bernoulli_vae import RelaxedBernoulliVAE

Array = jax.Array
Params = Any

SAMPLES_AT_ONCE = 10
TINY = 1e-30
# Numbers that an example's key is folded with; those of the samples of its codes go from 0 up.
OF_BLOCKS, OF_DROPOUT = 2**32 - 1, 2**32 - 2
SYSTEMS: dict[str, type[LatentVariableModel]] = {
    "sere_vae": SeReVAE,
    "ladder_vae": LadderVAE,
    "iaf_vae": InverseAutoregressiveVAE,
    "relaxed_bernoulli_vae": RelaxedBernoulliVAE,
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
        jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    return model


@public
def init(model: LatentVariableModel, key: Array, x: Array | None = None) -> Params:
    """Random parameters; those of the layers are stacked along a leading axis of length L.

    Args:
        model: from `create_model`.
        key: PRNG key.
        x: [B, *data_shape], a batch of data from which the activation normalization of flows
            starts; without it, and with a single image, it starts as the identity.

    Raises:
        ValueError: x has the wrong shape or holds no image, or there is more than one key.
    """
    x = jnp.zeros((1, *model.config.data_shape)) if x is None else check_images(model, x)
    if not len(x):
        raise ValueError(f"x has the shape {x.shape}, no image to start from; leave x out")
    key = as_key(key)
    if key.ndim:
        raise ValueError(f"key holds {len(key)} keys; init takes a single one")
    return _init(model, key, x)


@jit(static_argnums=0, optimize=False)
def _init(model, key, x):
    noise = jnp.zeros((len(x), *model.noise_shape))
    return model.init(key, x, noise)["params"]


@public
def to_data_space(
    model: LatentVariableModel, images: Array, key: Array, max_value: int = 255
) -> Array:
    """Images of integers as the x that the model's data layer takes.

    Binarized at random (`bernoulli`), dequantized (`gaussian`, flows; the latter in logit space) or
    as they are (`discretized_logistic_mixture`).

    Args:
        model: from `create_model`.
        images: [B, *data_shape] uint8 in 0..max_value.
        key: one PRNG key, or [B] keys.
        max_value: the value of white, 1 to 255.

    Returns:
        [B, *data_shape] in data space.

    Raises:
        TypeError: the images are not uint8, or `max_value` is no integer.
        ValueError: they have the wrong shape or values above `max_value`, or the data layer models
            images of another `max_value`.
    """
    space = data_space_of(model.config)
    max_value = _checked_count("max_value", max_value, at_most=255)
    array = as_array("images", images)
    if array.dtype != np.uint8:
        dtype = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"images are {dtype}; they must be uint8, 0 to max_value={max_value}")
    images = array
    _check_shape("images", images, model)
    check_values("images", images, (0, max_value), "give max_value, or the images scaled to it")
    if space.max_value not in (None, max_value):
        raise ValueError(
            f"max_value={max_value} must be {space.max_value} for data_layer="
            f"{model.config.data_layer!r}"
        )
    keys = example_keys(as_key(key), len(images))
    return space.from_images(jnp.asarray(images), keys, max_value)


@public
def to_pixels(model: LatentVariableModel, x: Array) -> Array:
    """x in data space, or expectations of it, as grey levels or colours in [0, 1], for pictures.

    Args:
        model: from `create_model`.
        x: [B, *data_shape] in data space.

    Returns:
        [B, *data_shape] in [0, 1].

    Raises:
        ValueError: x has the wrong shape or values outside of the data space.
    """
    x = check_images(model, x, is_expected=True)
    return data_space_of(model.config).to_pixels(x)


@public
def infer(model: LatentVariableModel, params: Params, x: Array, key: Array) -> Any:
    """Everything the model infers of x [B, *data_shape] with one sample of the codes.

    Returns:
        An `Inference`; of other systems than the SeRe-VAE a `LadderInference`, `SampledInference`
        or `RelaxedBernoulliInference`. All have `log_likelihood` [B], which is log p(x | z), `kl`
        [B, layers], `elbo` [B], and the codes `epsilon` and `z`.
    """
    x = check_images(model, x)
    return _infer(model, as_parameters(params), x, as_key(key))


@jit(static_argnums=0)
def _infer(model, params, x, key):
    noise = example_noise(model, key, x.shape[0])
    return _apply(model, params, x, noise)


@public
def elbo(model: LatentVariableModel, params: Params, x: Array, key: Array) -> Array:
    """Evidence lower bound log p(x | z) - KL with one sample of z, [B] nats (paper, Eq. 9)."""
    x = check_images(model, x)
    return _elbo(model, as_parameters(params), x, as_key(key))


@jit(static_argnums=0)
def _elbo(model, params, x, key):
    noise = example_noise(model, key, x.shape[0])
    log_likelihood, kl = _apply(model, params, x, noise, method="elbo_terms")
    return log_likelihood - jnp.sum(kl, axis=-1)


@public
def log_likelihood(
    model: LatentVariableModel, params: Params, x: Array, key: Array, num_samples: int = 1000
) -> Array:
    """Importance-weighted estimate of log p(x) (Burda et al. 2016, Eq. 8).

    log 1/K Σ_k p(x, z_k) / q(z_k | x), a lower bound in expectation that rises with K. The encoders
    run once per image and the samples are streamed, so that memory does not grow with K. Without
    latents (a plain flow) log p(x) is exact, whatever K and the key are.

    Args:
        model: from `create_model`.
        params: its parameters.
        x: [B, *data_shape] in data space.
        key: one PRNG key, or [B] keys.
        num_samples: K.

    Returns:
        [B] nats.

    Raises:
        ValueError: x has the wrong shape, or K is below 1.
    """
    return likelihood_and_elbo(model, params, x, key, num_samples)[0]


@public
def likelihood_and_elbo(
    model: LatentVariableModel, params: Params, x: Array, key: Array, num_samples: int = 1000
) -> tuple[Array, Array]:
    """`log_likelihood`, and the ELBO of the same samples: the mean of log p(x, z_k) / q(z_k | x).

    So of each image the ELBO is at most the likelihood, however few the samples are.

    Returns:
        [B] and [B] nats.
    """
    x = check_images(model, x)
    num_samples = _checked_count("num_samples", num_samples)
    num_samples = num_samples if model.config.has_latents else 1
    return _log_likelihood(model, as_parameters(params), x, as_key(key), num_samples)


@jit(static_argnums=(0, 4))
def _log_likelihood(model, params, x, key, num_samples):
    keys = example_keys(key, x.shape[0])
    observed = _apply(model, params, x, method="observe")
    chunk = min(num_samples, SAMPLES_AT_ONCE)
    num_chunks = math.ceil(num_samples / chunk)

    def add_chunk(carry, index):
        total, elbo = carry
        samples = index * chunk + jnp.arange(chunk)
        noise = jax.vmap(lambda sample: sample_noise(model, keys, sample))(samples)
        log_likelihood, ratio = _apply(model, params, x, observed, noise, method="log_weights")
        log_weights, is_one = log_likelihood + ratio, samples[:, None] < num_samples
        elbo += jnp.sum(jnp.where(is_one, log_weights / num_samples, 0.0), axis=0)
        log_weights = jnp.where(is_one, log_weights, -jnp.inf)
        return (jnp.logaddexp(total, jax.nn.logsumexp(log_weights, axis=0)), elbo), None

    nothing = jnp.zeros(x.shape[0])
    start = (nothing - jnp.inf, nothing)
    (total, elbo), _ = jax.lax.scan(add_chunk, start, jnp.arange(num_chunks))
    total -= math.log(num_samples)
    return total, jnp.minimum(elbo, total)  # but for rounding it is


@public
def sample(
    model: LatentVariableModel, params: Params, key: Array, num: int, *, expected: bool = False
) -> Array:
    """Draws images from the model, in O(L) steps; flows take num_flows D steps in all.

    Args:
        model: from `create_model`.
        params: its parameters.
        key: PRNG key.
        num: how many images.
        expected: return each block's expectation given the sampled codes and blocks before it,
            as figures show it, instead of the sample itself. A flow has none in closed form, and
            returns the sample.

    Returns:
        [num, *data_shape] in data space.
    """
    num = _checked_count("num", num)
    keys = example_keys(as_key(key), num)
    return _sample(model, as_parameters(params), keys)[int(expected)]


@jit(static_argnums=0)
def _sample(model, params, keys):
    noise = example_noise(model, keys, keys.shape[0])
    return _apply(model, params, noise, _block_keys(model, keys), method="generate")


@public
def reconstruct(
    model: LatentVariableModel,
    params: Params,
    x: Array,
    key: Array,
    *,
    expected: bool = False,
    residual: bool = True,
) -> Array:
    """Infers the codes of x and generates images from them.

    The data layers see the blocks that they generate, never those of x.

    Args:
        model: from `create_model`.
        params: its parameters.
        x: [B, *data_shape] in data space.
        key: one PRNG key, or [B] keys.
        expected: as in `sample`.
        residual: whether δγ(x_{l-1}, z_l) is added to the data layers' parameters; without it
            each block comes from γ¹(z_l) alone (paper, Figure S7).

    Returns:
        [B, *data_shape] in data space.

    Raises:
        ValueError: x has the wrong shape; or there are no codes, and no residual either.
    """
    x = check_images(model, x)
    if not (residual or model.config.has_latents):
        raise ValueError("residual=False leaves nothing of a model without codes; set it to True")
    images = _reconstruct(model, as_parameters(params), x, as_key(key), bool(residual))
    return images[int(expected)]


@jit(static_argnums=(0, 4))
def _reconstruct(model, params, x, key, residual):
    keys = example_keys(key, x.shape[0])
    z = _infer(model, params, x, keys).z
    return _apply(model, params, z, _block_keys(model, keys), residual, method="regenerate")


@public
def interpolate(
    model: LatentVariableModel,
    params: Params,
    x_start: Array,
    x_end: Array,
    key: Array,
    num: int,
) -> Array:
    """Expected images on the way from one image to another through the codes.

    What is interpolated is the standard normal noise that would make the codes of either image
    under the prior, (ε_l - μ_l(z_{l-1})) / σ_l(z_{l-1}), of all layers as one vector, and the model
    generates from it. So every code on the way is one that fits the codes before it, which those
    halfway between two z need not be. The path is a great circle (spherical interpolation): noise
    of N dimensions has a length near √N, and the middle of a straight line is too short.

    The ends are what `reconstruct` makes of either image alone with this key; but not with
    `couple_data_to_prior`, where the priors see the blocks that are generated.

    Args:
        model: from `create_model`.
        params: its parameters.
        x_start: [*data_shape] in data space.
        x_end: [*data_shape] in data space.
        key: one PRNG key, for the codes of both images and all images on the way.
        num: how many images, both ends included.

    Returns:
        [num, *data_shape] in data space, as `reconstruct` with `expected=True` returns them.

    Raises:
        ValueError: an image has the wrong shape or values, or `num` is below 2.
    """
    ends = [check_images(model, as_array("x", x)[None]) for x in (x_start, x_end)]
    num = _checked_count("num", num, at_least=2)
    (key,) = example_keys(as_key(key), 1)
    return _interpolate(model, as_parameters(params), jnp.concatenate(ends), key, num)


@jit(static_argnums=(0, 4))
def _interpolate(model, params, ends, key, num):
    inference = _infer(model, params, ends, jnp.stack([key, key]))
    start, end = _apply(model, params, inference, method="prior_noise")
    noise = jax.vmap(lambda part: _on_great_circle(start, end, part))(jnp.linspace(0.0, 1.0, num))
    keys = _block_keys(model, jnp.broadcast_to(key, (num,)))
    return _apply(model, params, noise, keys, method="generate")[1]


def _on_great_circle(start, end, part):
    """Spherical interpolation (Shoemake 1985); lengths go from one to the other likewise."""
    lengths = jnp.linalg.norm(start) * jnp.linalg.norm(end)
    angle = jnp.arccos(jnp.clip(jnp.vdot(start, end) / jnp.maximum(lengths, TINY), -1.0, 1.0))
    is_straight = jnp.sin(angle) < 1e-3  # and the formula divides by nearly 0
    sine = jnp.sin(jnp.where(is_straight, 1.0, angle))
    weights = jnp.where(
        is_straight,
        jnp.stack([1.0 - part, part]),
        jnp.stack([jnp.sin((1.0 - part) * angle), jnp.sin(part * angle)]) / sine,
    )
    return weights[0] * start + weights[1] * end


@struct.dataclass
class Objective:
    """A training objective and its parts, of a batch."""

    value: Array  # [B], to be maximized: the bound with the KL weighted
    log_likelihood: Array  # [B], log p(x | z), mean over samples
    kl: Array  # [B], unweighted; in closed form for one sample, if there is one, else Monte Carlo


@public
def objective(
    model: LatentVariableModel,
    params: Params,
    x: Array,
    key: Array,
    *,
    kl_weight: Array | float = 1.0,
    num_samples: int = 1,
) -> Objective:
    """The ELBO, or with several samples the importance-weighted bound, for training.

    With one sample the KL is in closed form (paper, Eqs. 9 and 10), where the system has one; with
    S samples the objective is log 1/S Σ_s p(x | z_s) (p(ε_s) / q(ε_s))^kl_weight, at weight 1 the
    bound of Burda et al. 2016 (Eq. 8). It is the one function that drops hidden units
    (`config.dropout`).

    Args:
        model: from `create_model`.
        params: its parameters.
        x: [B, *data_shape] in data space.
        key: one PRNG key, or [B] keys.
        kl_weight: weight of the KL, for a warm-up.
        num_samples: S; without latents (a plain flow) the likelihood is exact whatever it is.

    Raises:
        ValueError: x has the wrong shape, or S is below 1.
    """
    x, params = check_images(model, x), as_parameters(params)
    num_samples = _checked_count("num_samples", num_samples)
    keys = example_keys(as_key(key), x.shape[0])
    if num_samples == 1 or not model.config.has_latents:

        def elbo_terms(x, noise, rngs):
            return _apply(model, params, x, noise, method="elbo_terms", rngs=rngs)

        noise = sample_noise(model, keys, 0)
        log_likelihood, kl = _with_dropout(model, elbo_terms, x, noise, keys, axis=0)
        kl = jnp.sum(kl, axis=-1)
        return Objective(log_likelihood - kl_weight * kl, log_likelihood, kl)

    def log_weights_terms(x, noise, rngs):
        observed = _apply(model, params, x, method="observe", rngs=rngs)
        return _apply(model, params, x, observed, noise, method="log_weights")

    noise = jax.vmap(lambda s: sample_noise(model, keys, s))(jnp.arange(num_samples))
    log_likelihood, ratio = _with_dropout(model, log_weights_terms, x, noise, keys, axis=1)
    log_weights = log_likelihood + kl_weight * ratio
    bound = jax.nn.logsumexp(log_weights, axis=0) - math.log(num_samples)
    return Objective(bound, jnp.mean(log_likelihood, axis=0), -jnp.mean(ratio, axis=0))


def _with_dropout(model, terms, x, noise, keys, axis):
    """`terms(x, noise, rngs)`, whose examples drop units of their own, whatever their batch is.

    Args:
        model: says whether units are dropped at all.
        terms: what to apply; its results have the examples on `axis`.
        x: [B, *data_shape].
        noise: of their codes, with the examples on `axis`.
        keys: [B].
        axis: of the examples.
    """
    if not model.config.dropout:
        return terms(x, noise, None)

    def terms_of_one(x, noise, key):
        rngs = {"dropout": jax.random.fold_in(key, OF_DROPOUT)}
        of_batch = terms(x[None], jnp.expand_dims(noise, axis), rngs)
        return jax.tree.map(lambda term: jnp.squeeze(term, axis), of_batch)

    return jax.vmap(terms_of_one, in_axes=(0, axis, 0), out_axes=axis)(x, noise, keys)


def check_images(model: LatentVariableModel, x: Any, *, is_expected: bool = False) -> Array:
    """x as an array of floats; values are looked at where `check_values` does.

    Args:
        model: from `create_model`.
        x: what users pass.
        is_expected: whether x may be an expectation, which is seldom a whole number.

    Raises:
        TypeError: it does not hold real numbers.
        ValueError: its shape is not [B, *data_shape], or values lie outside of the data space.
    """
    x = as_array("x", x)
    space, way_out = data_space_of(model.config), "sere_jax.to_data_space makes x of uint8 images"
    check_values("x", x, space.limits, way_out)
    if space.is_discrete and not is_expected and isinstance(x, np.ndarray):
        for value in x[x != np.round(x)][:1]:
            raise ValueError(f"x holds the value {value}, which is no whole number; {way_out}")
    x = jnp.asarray(as_floats("x", x), jnp.float32)
    _check_shape("x", x, model)
    return x


def _check_shape(name, x, model):
    if x.shape[1:] != model.config.data_shape or x.ndim != 4:
        raise ValueError(
            f"{name} has the shape {x.shape}; the model expects (batch, *data_shape) = "
            f"(batch, {', '.join(map(str, model.config.data_shape))})"
        )


def _checked_count(name, count, at_least=1, at_most=None):
    count = count if isinstance(count, jax.core.Tracer) else python_value(count)
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name}={count!r} must be an integer of at least {at_least}")
    if count < at_least:
        raise ValueError(f"{name}={count} must be at least {at_least}")
    if at_most is not None and count > at_most:
        raise ValueError(f"{name}={count} must be at most {at_most}")
    return count


def example_keys(key: Array, num_examples: int) -> Array:
    """[B] keys: `key` itself if it holds one per example, else folded with the example's index.

    Raises:
        ValueError: it holds another number of keys than one or `num_examples`.
    """
    if key.ndim == 1:
        if key.shape != (num_examples,):
            raise ValueError(f"key holds {key.shape[0]} keys for {num_examples} examples")
        return key
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_examples))


def sample_noise(model: LatentVariableModel, keys: Array, sample: Array | int) -> Array:
    """Noise [B, *noise_shape] of sample number `sample` of each example's codes."""
    sample_keys = jax.vmap(lambda key: jax.random.fold_in(key, sample))(keys)

    def draw(layer):
        return jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, layer), model.noise_shape[1:])
        )(sample_keys)

    # Layer by layer: XLA's time to compile one draw for all layers grows with their number.
    return jnp.moveaxis(jax.lax.map(draw, jnp.arange(model.noise_shape[0])), 0, 1)


def example_noise(model: LatentVariableModel, key: Array, num_examples: int) -> Array:
    """Noise [B, *noise_shape] of one sample of each example's codes."""
    return sample_noise(model, example_keys(key, num_examples), 0)


def _apply(
    model: LatentVariableModel,
    params: Params,
    *arguments: Any,
    method: str = "__call__",
    rngs: dict[str, Array] | None = None,
) -> Any:
    return model.apply({"params": params}, *arguments, method=method, rngs=rngs)


def _block_keys(model, keys):
    """Keys [B, num_block_keys] of the data layers from keys [B]."""

    def split(key):
        return jax.random.split(jax.random.fold_in(key, OF_BLOCKS), model.num_block_keys)

    return jax.vmap(split)(keys)
