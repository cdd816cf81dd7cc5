"""Importance-weighted likelihood, K = 1000: what depends on the image alone is computed once."""

import math

import jax
import jax.numpy as jnp

import sere_jax
from benchmarks import machine, operations, production
from benchmarks.harness import Benchmark, Step, Target, rate
from configs import mnist_mlp
from sere_jax.arrays import Params
from sere_jax.functions import SAMPLES_AT_ONCE
from sere_jax.inputs import example_keys, noise_of_samples

NUM_IMAGES = 100  # at once, as `config.evaluation.batch_size` has it
NUM_SAMPLES = 1000
QUICK_NUM_SAMPLES = 20


def ours(quick: bool) -> Step:
    """`sere_jax.log_likelihood`."""
    return production.until_ready(sere_jax.log_likelihood, *_arguments(quick))


def encoders_in_the_loop(quick: bool) -> Step:
    """The same with the whole model applied to each sample."""
    model, *arguments, num_samples = _arguments(quick)

    @jax.jit
    def estimate(params, x, key):
        return log_likelihood_of_repeated_images(model, params, x, key, num_samples)

    return production.until_ready(estimate, *arguments)


def log_likelihood_of_repeated_images(
    model: sere_jax.LatentVariableModel,
    params: Params,
    x: jax.Array,
    key: jax.Array,
    num_samples: int,
) -> jax.Array:
    """`sere_jax.log_likelihood` of x [B, ...] with a copy of each image for each sample.

    Args:
        model: from `sere_jax.create_model`.
        params: its parameters.
        x: [B, *data_shape] in data space.
        key: one PRNG key.
        num_samples: K, a multiple of `SAMPLES_AT_ONCE`.

    Returns:
        [B] nats.
    """
    keys = example_keys(key, len(x))
    copies = jnp.tile(x, (SAMPLES_AT_ONCE, 1, 1, 1))

    def apply(*arguments, method):
        return model.apply({"params": params}, *arguments, method=method)

    def add_chunk(total, first):
        # Else the compiler could take out of the loop what this is about.
        images, first = jax.lax.optimization_barrier((copies, first))
        samples = first + jnp.arange(SAMPLES_AT_ONCE)
        noise = noise_of_samples(model, keys, samples)
        num_layers, *event_shape = model.noise_shape
        noise = noise.reshape(num_layers, 1, len(images), *event_shape)
        observed = apply(images, method="observe")
        weights = sum(apply(images, observed, noise, method="log_weights"))
        weights = weights.reshape(SAMPLES_AT_ONCE, len(x))
        return jnp.logaddexp(total, jax.nn.logsumexp(weights, axis=0)), None

    start = jnp.full(len(x), -jnp.inf)
    total, _ = jax.lax.scan(add_chunk, start, jnp.arange(0, num_samples, SAMPLES_AT_ONCE))
    return total - math.log(num_samples)


def our_rate(quick: bool) -> Step:
    """GFLOP/s; see `operations.of_likelihood`."""
    model, _, x, _, num_samples = _arguments(quick)
    return rate(ours(quick), 1e-9 * operations.of_likelihood(model, len(x), num_samples))


def _arguments(quick: bool):
    config = production.reduced_mlp(mnist_mlp.get_config(), quick)
    model = sere_jax.create_model(config)
    params = sere_jax.init(model, jax.random.key(0))
    x = jnp.asarray(production.random_images(config, NUM_IMAGES) > 127, jnp.float32)
    num_samples = QUICK_NUM_SAMPLES if quick else NUM_SAMPLES
    return model, params, x, jax.random.key(1), num_samples


IMPORTANCE_WEIGHTED = Benchmark(
    name="importance_weighted",
    work="log p(x) of an image by the MLP SeRe-VAE, K = 1000, 100 images at once",
    contenders={"ours": ours, "encoders in the loop": encoders_in_the_loop},
    targets={"encoders in the loop": Target(">=", 2.5)},
    units=NUM_IMAGES,
    units_name="images",
)
IMPORTANCE_WEIGHTED_RATE = Benchmark(
    name="importance_weighted:rate",
    work="floating-point rate of that",
    contenders={"product of matrices": machine.matmul, "log p(x)": our_rate},
    targets={"log p(x)": Target(">=", 0.7)},
    unit="GFLOP/s",
)
