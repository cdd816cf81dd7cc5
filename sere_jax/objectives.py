"""What training maximizes: the ELBO or the importance-weighted bound, with the KL weighted.

Arguments are those of `sere_jax.functions`.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from sere_jax.arrays import (
    Array,
    Count,
    Keys,
    Params,
    PerImage,
    Values,
    as_key,
    as_parameters,
    in_float32,
    record,
)
from sere_jax.inputs import (
    OF_DROPOUT,
    check_condition,
    check_images,
    checked_count,
    example_keys,
    noise_of_samples,
    sample_noise,
)
from sere_jax.model import LatentVariableModel, apply
from sere_jax.rules import BFLOAT16, PRECISIONS

Examples: TypeAlias = tuple[Array, Array | None]  # x [B, *data_shape], condition [B, C]


@record
class Objective:
    """A training objective and its parts.

    Attributes:
        value: [B] in nats, to be maximized: the bound with the KL weighted.
        log_likelihood: [B] in nats, log p(x | z), mean over samples.
        kl: [B] in nats, unweighted; of one sample in closed form where there is one, else estimated
            from the samples.
    """

    value: PerImage
    log_likelihood: PerImage
    kl: PerImage


@in_float32
def objective(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    key: Keys,
    *,
    kl_weight: Array | float = 1.0,
    num_samples: Count = 1,
    precision: str = "float32",
    condition: Values | None = None,
) -> Objective:
    """The ELBO, or with several samples the importance-weighted bound, for training.

    With one sample the KL is in closed form (paper, Eqs. 9 and 10), where the system has one; with
    S samples the objective is log (1/S Σ_s p(x | z_s) (p(ε_s) / q(ε_s))^kl_weight), at weight 1 the
    bound of Burda et al. 2016 (Eq. 8). It is the one function that drops hidden units (`dropout`,
    `generative_dropout`, of networks that read codes other ones for each sample) and pixels of
    previous blocks (`block_dropout`).

    Args:
        x: [B, *data_shape] in data space.
        key: PRNG key, or [B] keys.
        kl_weight: weight of the KL, for a warm-up.
        num_samples: S; without latents (a plain flow) the likelihood is exact whatever it is.
        precision: of matrix products, also in gradients. "float32": as JAX is set to
            (`jax_default_matmul_precision`), by default TF32 on GPUs that have it; "bfloat16":
            inputs rounded to it and sums in float32, but for the last affine maps of networks. All
            else is float32.
        condition: [B, C], if the model has one.

    Raises:
        TypeError: S is no integer.
        ValueError: x or the condition has the wrong shape, S is below 1, or the precision is no
            such name.
    """
    x, params = check_images(model, x), as_parameters(params)
    condition = check_condition(model, condition, len(x))
    num_samples = checked_count("num_samples", num_samples)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of: {', '.join(PRECISIONS)}")
    keys = example_keys(as_key(key), len(x))
    with jax.default_matmul_precision(BFLOAT16) if precision == BFLOAT16 else nullcontext():
        return _objective(model, params, (x, condition), keys, kl_weight, num_samples)


def _objective(
    model: LatentVariableModel,
    params: Params,
    examples: Examples,
    keys: Array,
    kl_weight: Array | float,
    num_samples: int,
) -> Objective:
    if num_samples == 1 or not model.config.has_latents:

        def elbo_terms(examples: Examples, noise: Array, rngs: Any) -> tuple[Array, Array]:
            x, condition = examples
            options: dict[str, Any] = {"condition": condition, "rngs": rngs}
            return apply(model, params, x, noise, method="elbo_terms", **options)

        noise = sample_noise(model, keys, 0)
        log_likelihood, kl = _with_dropout(model, elbo_terms, examples, noise, keys, axis=0)
        kl = jnp.sum(kl, axis=-1)
        return Objective(log_likelihood - kl_weight * kl, log_likelihood, kl)

    def log_weights_terms(examples: Examples, noise: Array, rngs: Any) -> tuple[Array, Array]:
        x, condition = examples
        observed = apply(model, params, x, method="observe", condition=condition, rngs=rngs)
        return apply(model, params, x, observed, noise, method="log_weights", rngs=rngs)

    noise = noise_of_samples(model, keys, jnp.arange(num_samples))
    log_likelihood, ratio = _with_dropout(model, log_weights_terms, examples, noise, keys, axis=1)
    log_weights = log_likelihood + kl_weight * ratio
    bound = jax.nn.logsumexp(log_weights, axis=0) - math.log(num_samples)
    return Objective(bound, jnp.mean(log_likelihood, axis=0), -jnp.mean(ratio, axis=0))


def _with_dropout(
    model: LatentVariableModel,
    terms: Callable[[Examples, Array, Any], tuple[Array, Array]],
    examples: Examples,
    noise: Array,
    keys: Array,
    axis: int,
) -> tuple[Array, Array]:
    """`terms(examples, noise, rngs)`; an example drops what its keys say, whatever its batch is.

    The results have the examples on `axis`, the noise on the one after.
    """
    if not model.config.drops_in_training:
        return terms(examples, noise, None)

    def terms_of_one(example: Examples, noise: Array, key: Array) -> tuple[Array, Array]:
        rngs = {"dropout": jax.random.fold_in(key, OF_DROPOUT)}
        batch = jax.tree.map(lambda part: part[None], example)
        of_batch = terms(batch, jnp.expand_dims(noise, axis + 1), rngs)
        return jax.tree.map(lambda term: jnp.squeeze(term, axis), of_batch)

    return jax.vmap(terms_of_one, in_axes=(0, axis + 1, 0), out_axes=axis)(examples, noise, keys)


def weighted_bounds(
    model: LatentVariableModel,
    params: Params,
    x: Array,
    observed: Any,
    keys: Array,
    num_samples: int,
    chunk: int,
) -> tuple[Array, Array]:
    """Importance-weighted log p(x) and the ELBO of the same samples, [B] nats each.

    `observed` is what q knows of x, `keys` [B] are those of the noise; `chunk` samples of each
    image are computed at once.
    """
    num_chunks = math.ceil(num_samples / chunk)

    def add_chunk(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        total, elbo = carry
        samples = index * chunk + jnp.arange(chunk)
        noise = noise_of_samples(model, keys, samples)
        log_likelihood, ratio = apply(model, params, x, observed, noise, method="log_weights")
        log_weights, is_one = log_likelihood + ratio, samples[:, None] < num_samples
        elbo += jnp.sum(jnp.where(is_one, log_weights / num_samples, 0.0), axis=0)
        log_weights = jnp.where(is_one, log_weights, -jnp.inf)
        return (jnp.logaddexp(total, jax.nn.logsumexp(log_weights, axis=0)), elbo), None

    nothing = jnp.zeros(len(x))
    start = (nothing - jnp.inf, nothing)
    (total, elbo), _ = jax.lax.scan(add_chunk, start, jnp.arange(num_chunks))
    total -= math.log(num_samples)
    return total, jnp.minimum(elbo, total)  # it is, but for rounding (Jensen)
