"""The training step: updates, averages, skips, and the independence of dispatches and devices."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import ROOT, environment

import sere_jax
from configs import base
from experiments.data import Dataset, Labels, input_pipeline
from experiments.data.input_pipeline import epoch_order
from experiments.data.stored import StoredImages
from experiments.distributed.devices import replicate
from experiments.optimization import schedules
from experiments.run_folder.checkpoints import Checkpoints
from experiments.system.ahead import ahead
from experiments.training.state import TrainState, init_state, state_template
from experiments.training.step import (
    StepSettings,
    apply_gradients,
    create_train_dispatch,
    global_norm,
)
from experiments.training.stream import TrainingStream, spans

pytestmark = pytest.mark.usefixtures("quick_compilation")
NUM_EXAMPLES, BATCH = 24, 8
FOUND_FROM_ELSEWHERE = {  # this file, in other processes
    "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "tests", "tests/experiments"))
}
AFFINE_UNTIL = 4
CONDITION_SIZES = {"": 0, "affine": 6, "label": 3}
LABELS = (np.arange(NUM_EXAMPLES) * 7 % 10 % 3).astype(np.int32)


@functools.cache
def tiny_experiment(
    num_train_samples=1, random_affine=0.0, condition="", model=(), **training_fields
):
    config = base.get_config()
    config.dataset.update(random_affine=random_affine, condition=condition)
    config.model.condition_size = CONDITION_SIZES[condition]
    config.model.update(data_shape=(2, 3, 1), num_layers=3, latent_shape=(2,), hidden_size=8)
    config.model.update(dict(model))
    config.training.update(batch_size=BATCH, num_train_samples=num_train_samples, **training_fields)
    return config, sere_jax.create_model(config), tiny_images()


def tiny_images():
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_EXAMPLES, 2, 3, 1))
    return pixels.astype(np.uint8)


def settings_of(optimizer=None, kl_weight=lambda step: 1.0, importance_weighted_from=0, **fields):
    config, model, _ = tiny_experiment(**fields)
    optimizer = optimizer or optax.adam(1e-2)
    return StepSettings(
        model=model,
        optimizer=optimizer,
        training=config.training,
        kl_weight=kl_weight,
        augment=input_pipeline.augmentation(config.dataset, AFFINE_UNTIL, max_value=255),
        num_examples=NUM_EXAMPLES,
        max_value=255,
        importance_weighted_from=importance_weighted_from,
        has_labels=fields.get("condition") == "label",
    )


def create(**fields):
    settings = settings_of(**fields)
    model, optimizer = settings.model, settings.optimizer
    images = tiny_images()
    dispatch = create_train_dispatch(settings)
    if settings.has_labels:
        labels, with_labels = replicate(LABELS), dispatch

        def dispatch(state, images, num_steps):
            return with_labels(state, images, num_steps, labels)

    state = replicate(init_state(model, optimizer, seed=3))
    return model, dispatch, state, replicate(images)


def host(tree):
    return jax.tree.map(np.array, tree)


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, host(one), host(other))


def run(dispatch, state, images, lengths):
    for length in lengths:
        state, metrics = dispatch(state, images, length)
    return state, metrics


@pytest.mark.parametrize("condition", CONDITION_SIZES)
def test_an_update_is_a_gradient_step_on_the_batch_of_its_place_in_the_epoch(condition):
    random_affine = 0.5 if condition == "affine" else 0.0
    model, dispatch, state, images = create(
        optimizer=optax.sgd(0.1), condition=condition, random_affine=random_affine
    )
    before = host(state)
    after = host(dispatch(state, images, 1)[0])

    key = jax.random.wrap_key_data(before.key)
    order = epoch_order(jax.random.fold_in(key, 2**32 - 1), 0, NUM_EXAMPLES)
    step_key = jax.random.fold_in(key, 0)
    gradients, x = [], np.asarray(images)[np.asarray(order[:BATCH])]
    num_transformed = 0

    @jax.jit
    @jax.grad
    def gradient(params, example, noise_key, row):
        return -jnp.mean(sere_jax.elbo(model, params, example, noise_key[None], condition=row))

    for place in range(BATCH):
        own_key, data_key, noise_key = jax.random.split(jax.random.fold_in(step_key, place), 3)
        example, row = x[place : place + 1], None
        if condition == "label":
            row = np.eye(3, dtype=np.float32)[[LABELS[order[place]]]]
        if condition == "affine":
            affine_key = jax.random.fold_in(own_key, 1)[None]
            example, row = input_pipeline.transform_at_random(example, affine_key, 0.5)
            num_transformed += int(np.any(row != 0))
        example = sere_jax.to_data_space(model, example, data_key[None])
        gradients.append(gradient(before.params, example, noise_key, row))
    assert condition != "affine" or 0 < num_transformed < BATCH
    mean = jax.tree.map(lambda *leaves: sum(leaves) / BATCH, *gradients)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, mean)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, expected
    )


def test_how_updates_are_cut_into_dispatches_changes_no_bit():
    _, dispatch, state, images = create()
    _, _, other, _ = create()
    one, _ = run(dispatch, state, images, [3, 3])
    other, _ = run(dispatch, other, images, [1, 2, 2, 1])
    assert_same_bits(one, other)


@pytest.mark.parametrize("condition", CONDITION_SIZES)
def test_images_that_are_streamed_change_no_bit(condition, tmp_path):
    fields = {"condition": condition, "random_affine": 0.5 if condition == "affine" else 0.0}
    _, dispatch, state, images = create(**fields)
    expected, sums = run(dispatch, state, images, [3, 1, 2, 3])

    (tmp_path / "images").write_bytes(tiny_images().tobytes())
    stored = StoredImages(tmp_path / "images", 0, (NUM_EXAMPLES, 2, 3, 1))
    labels = Labels(LABELS, LABELS[:0], LABELS[:0], 3) if condition == "label" else None
    dataset = Dataset("tiny", stored, stored[:0], stored[:0], 255, labels)
    settings = dataclasses.replace(settings_of(**fields), is_streamed=True)
    dispatch = create_train_dispatch(settings)
    state = init_state(settings.model, settings.optimizer, seed=3)
    stream = TrainingStream(settings, dataset, np.asarray(state.key), most_steps=3)
    state = replicate(state)
    lengths = []
    for num_steps, (part, *labels) in ahead(stream.read, spans(0, 9, [3, 4, 9])):
        state, metrics = dispatch(state, part, num_steps, *labels)
        lengths.append(num_steps)
    assert lengths == [3, 1, 2, 2, 1]
    assert_same_bits(state, expected)
    assert float(sums.count) == 3 and float(metrics.count) == 1


IN_PIECES = {
    "elbo": {},
    "importance_weighted": {"num_train_samples": 3},
    "importance_weighted_later": {"num_train_samples": 3, "importance_weighted_from": 2},
    "dropout": {"model": (("dropout", 0.3),)},
    "generative_dropout": {"model": (("generative_dropout", 0.3), ("block_dropout", 0.3))},
    "flows": {"model": (("data_layer", "masked_autoregressive_flow"), ("flow_hidden_size", 8))},
    "labels": {"condition": "label", "num_train_samples": 3},
    "affine": {"condition": "affine", "random_affine": 0.5, "model": (("dropout", 0.3),)},
}


@pytest.mark.parametrize("name", IN_PIECES)
def test_gradients_of_pieces_add_up_to_that_of_the_batch(name):
    _, whole, state, images = create(optimizer=optax.sgd(0.05), **IN_PIECES[name])
    expected = host(run(whole, state, images, [1, 2]))
    for pieces in (2, BATCH):
        _, dispatch, state, _ = create(
            optimizer=optax.sgd(0.05), accumulate_steps=pieces, **IN_PIECES[name]
        )
        found = host(run(dispatch, state, images, [1, 2]))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected
        )


def test_a_run_with_labels_goes_on_with_the_same_bits():
    _, dispatch, state, images = create(condition="label")
    expected, _ = run(dispatch, state, images, [3, 3])
    _, dispatch, state, images = create(condition="label")
    half, _ = run(dispatch, state, images, [2])
    found, _ = run(dispatch, replicate(host(half)), images, [1, 2, 1])
    assert_same_bits(found, expected)


def test_memory_falls_with_the_number_of_pieces():
    config, model, _ = tiny_experiment(model=(("hidden_size", 16),))
    optimizer = optax.sgd(0.05)

    def memory(pieces):
        training = config.copy_and_resolve_references().training
        training.update(batch_size=800, accumulate_steps=pieces)
        augment = input_pipeline.augmentation(config.dataset, AFFINE_UNTIL, max_value=255)
        settings = StepSettings(model, optimizer, training, lambda step: 1.0, augment, 800, 255)
        dispatch = create_train_dispatch(settings)
        state = jax.eval_shape(functools.partial(init_state, model, optimizer, 3))
        images = jax.ShapeDtypeStruct((800, 2, 3, 1), jnp.uint8)
        program = dispatch.func.lower(*dispatch.args, state, images, 1).compile()
        return program.memory_analysis().temp_size_in_bytes

    whole, in_eight = memory(1), memory(8)
    assert in_eight < 0.5 * whole


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_goes_on_with_the_same_bits_whatever_its_products_and_pieces(precision):
    fields = {"precision": precision, "accumulate_steps": 2}
    _, dispatch, state, images = create(**fields)
    expected, _ = run(dispatch, state, images, [3, 3])
    _, dispatch, state, images = create(**fields)
    half, _ = run(dispatch, state, images, [1, 2])
    _, dispatch, _, _ = create(**fields)
    found, _ = run(dispatch, replicate(host(half)), images, [2, 1])
    assert_same_bits(found, expected)
    _, dispatch, state, _ = create()
    plain = host(run(dispatch, state, images, [3, 3])[0].params)
    far = jax.tree.map(lambda a, b: np.abs(a - b).max(), host(expected).params, plain)
    largest = max(jax.tree.leaves(far))
    assert (largest > 1e-4) == (precision == "bfloat16")
    assert largest < 0.05


IN_BFLOAT16 = """
import numpy as np, test_training as t
_, dispatch, state, images = t.create(precision="bfloat16")
state, metrics = t.run(dispatch, state, images, [3, 3])
assert float(metrics.count) == 3 and np.isfinite(float(metrics.objective))
"""


def test_products_in_bfloat16_run_as_xla_optimizes_them_too():
    # What XLA merges a product with decides whether it can compute it on CPUs.
    compiled_as_users_do = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    variables = environment() | FOUND_FROM_ELSEWHERE | compiled_as_users_do
    subprocess.run([sys.executable, "-c", IN_BFLOAT16], env=variables, check=True)


def test_the_kind_of_key_that_jax_is_set_to_changes_no_bit():
    def trained():
        _, *arguments = create(random_affine=0.5)
        return run(*arguments, (3,))

    expected = trained()
    for impl in ("rbg", "unsafe_rbg"):
        with jax.default_prng_impl(impl):
            assert_same_bits(trained(), expected)


def test_images_are_augmented_until_the_step_that_says_so():
    def ends(random_affine):
        _, dispatch, state, images = create(random_affine=random_affine)
        state = host(state)
        return [
            host(run(dispatch, state.replace(step=0 * state.step + start), images, [2])[0].params)
            for start in (AFFINE_UNTIL - 2, AFFINE_UNTIL)
        ]

    before, after = zip(ends(0.0), ends(1.0), strict=True)
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, *before)))
    assert_same_bits(*after)


def test_averaged_weights_follow_their_recursion():
    _, dispatch, state, images = create(ema_decay=0.5)
    average = host(state.ema_params)
    for step in range(5):
        state, _ = dispatch(state, images, 1)
        decay = min(0.5, (1 + step) / (10 + step))
        average = jax.tree.map(
            lambda a, p, decay=decay: decay * a + (1 - decay) * p, average, host(state.params)
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        host(state.ema_params),
        average,
    )


def test_an_update_that_is_not_finite_is_skipped_and_counted_and_training_goes_on():
    _, dispatch, state, images = create(
        kl_weight=lambda step: jnp.where(step == 1, jnp.nan, 1.0), max_consecutive_skips=2
    )
    state, metrics = dispatch(state, images, 1)
    before = host(state)
    state, metrics = dispatch(state, images, 1)
    skipped = host(state)
    assert float(metrics.count) == 0
    assert skipped.skipped_steps == skipped.consecutive_skips == 1
    assert skipped.step == before.step + 1
    for part in ("params", "ema_params", "opt_state"):
        assert_same_bits(getattr(before, part), getattr(skipped, part))
    state, metrics = dispatch(state, images, 1)
    assert float(metrics.count) == 1
    assert int(state.skipped_steps) == 1 and int(state.consecutive_skips) == 0
    assert np.isfinite(float(metrics.objective))


def test_a_skipped_update_does_not_delay_the_learning_rate():
    """Plain gradient descent: a change is the rate of the step times the same gradient."""
    params = {"w": jnp.zeros(())}
    optimizer = optax.chain(optax.scale_by_learning_rate(lambda step: 2.0**step))
    state = TrainState(
        step=jnp.int32(5),
        key=jnp.zeros(2, jnp.uint32),
        params=params,
        ema_params=params,
        opt_state=jax.tree.map(lambda leaf: leaf + 3, optimizer.init(params)),  # two were skipped
        skipped_steps=jnp.int32(2),
        consecutive_skips=jnp.int32(0),
    )
    changed, _, _ = apply_gradients(optimizer, state, 1.0, jnp.float32(0.5), {"w": jnp.ones(())})
    assert float(changed["w"]) == -(2.0**5)


@pytest.mark.parametrize("share", [0.5, 2.0, 0.0])
def test_gradients_are_clipped_by_their_global_norm(share):
    optimizer = optax.sgd(1.0)
    _, dispatch, state, images = create(optimizer=optimizer, max_gradient_norm=0.0)
    before = host(state.params)
    free, metrics = dispatch(state, images, 1)
    norm = float(metrics.gradient_norm)
    _, dispatch, state, images = create(optimizer=optimizer, max_gradient_norm=share * norm)
    clipped, metrics = dispatch(state, images, 1)
    assert float(metrics.gradient_norm) == pytest.approx(norm, rel=1e-5)
    assert float(metrics.clipped) == (0 < share < 1)
    scale = min(share or 1.0, 1.0)
    jax.tree.map(
        lambda old, new, expected: np.testing.assert_allclose(
            new - old, scale * (expected - old), rtol=1e-3, atol=1e-6
        ),
        before,
        host(clipped.params),
        host(free.params),
    )


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (13, 17), (10, 79, 200), (3, 16, 1)])
def test_the_global_norm_is_that_of_float64(shape):
    rng = np.random.default_rng(0)
    tree = {"large": rng.normal(size=shape), "small": [rng.normal(size=5)]}
    expected = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
    tree = jax.tree.map(jnp.float32, tree)
    np.testing.assert_allclose(jax.jit(global_norm)(tree), expected, rtol=1e-6)
    broken = tree | {"small": [jnp.array([1.0, jnp.nan])]}
    assert not np.isfinite(global_norm(broken))


def test_parameters_that_overflow_show_in_their_norm_and_later_updates_are_skipped():
    _, dispatch, state, images = create(optimizer=optax.sgd(1e38))
    state, metrics = dispatch(state, images, 1)
    assert np.isfinite(float(metrics.max_gradient_norm)) and float(metrics.count) == 1
    assert not np.isfinite(float(metrics.parameter_norm))
    overflowed = host(state)
    state, metrics = dispatch(state, images, 1)
    assert float(metrics.count) == 0 and int(state.skipped_steps) == 1
    assert_same_bits(overflowed.params, state.params)


def test_after_too_many_skips_in_a_row_nothing_is_updated_any_more():
    _, dispatch, state, images = create(
        kl_weight=lambda step: jnp.where(step < 3, jnp.nan, 1.0), max_consecutive_skips=2
    )
    before = host(state)
    state, _ = run(dispatch, state, images, [3, 3])
    assert int(state.consecutive_skips) == 2
    assert_same_bits(before.params, state.params)


@pytest.mark.parametrize("num_train_samples", [1, 5])
def test_both_objectives_rise(num_train_samples):
    _, dispatch, state, images = create(num_train_samples=num_train_samples)
    state, first = dispatch(state, images, 3)
    for _ in range(30):
        state, last = dispatch(state, images, 3)
    assert float(last.objective / last.count) > float(first.objective / first.count) + 0.1


def test_several_samples_are_drawn_from_the_step_that_says_so():
    _, one, state, images = create()
    _, five, _, _ = create(num_train_samples=5)
    expected = [host(run(one, state, images, [2])[0])]
    expected.append(host(run(five, replicate(expected[0]), images, [1, 1])[0]))
    _, dispatch, state, _ = create(num_train_samples=5, importance_weighted_from=2)

    for state_then in expected:
        state, _ = run(dispatch, state, images, [1, 1])
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            host(state.params),
            state_then.params,
        )


WORKER = """
import sys
import numpy as np, jax, optax
import test_training as t
_, dispatch, state, images = t.create(
    optimizer=optax.sgd(0.05), accumulate_steps=int(sys.argv[2]), **t.RUNS[sys.argv[3]]
)
state, metrics = t.run(dispatch, state, images, [3, 3, 3])
leaves = jax.tree.leaves(t.host(state.params))
np.savez(sys.argv[1], devices=jax.device_count(), metrics=float(metrics.objective), *leaves)
"""


RUNS = {
    "": {},
    "label": {"condition": "label"},
    "affine": {"condition": "affine", "random_affine": 0.5},
    "dropout": {
        "model": (("dropout", 0.3), ("generative_dropout", 0.3), ("block_dropout", 0.3)),
    },
}


@functools.cache
def run_on_one_device(name):
    _, dispatch, state, images = create(optimizer=optax.sgd(0.05), **RUNS[name])
    return host(run(dispatch, state, images, [3, 3, 3]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_devices", "pieces", "name"),
    [(2, 1, ""), (4, 1, ""), (4, 2, ""), (4, 1, "label"), (2, 2, "affine"), (4, 1, "dropout")],
)
def test_several_devices_compute_the_run_of_one(num_devices, pieces, name, tmp_path):
    state, metrics = run_on_one_device(name)
    path = tmp_path / "several.npz"
    arguments = [sys.executable, "-c", WORKER, str(path), str(pieces), name]
    variables = environment(num_devices) | FOUND_FROM_ELSEWHERE
    subprocess.run(arguments, env=variables, check=True)
    several = np.load(path)
    assert several["devices"] == num_devices
    assert several["metrics"] == pytest.approx(float(metrics.objective), rel=1e-5)
    for i, leaf in enumerate(jax.tree.leaves(host(state.params))):
        np.testing.assert_allclose(several[f"arr_{i}"], leaf, rtol=1e-4, atol=1e-6)


def test_a_run_with_muon_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path):
    training = tiny_experiment(optimizer="muon", weight_decay=0.1)[0].training
    optimizer = schedules.create_optimizer(training, optax.cosine_decay_schedule(1e-2, 6))
    _, dispatch, state, images = create(optimizer=optimizer)
    start = host(state.params)
    expected, _ = run(dispatch, state, images, [3, 3])
    model, dispatch, state, images = create(optimizer=optimizer)
    half, _ = run(dispatch, state, images, [3])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(host(half), {"train_seconds": 1.0}, -1.0)
        checkpoints.wait()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored, _ = checkpoints.restore_latest(state_template(model, optimizer, seed=3))
    _, dispatch, _, _ = create(optimizer=optimizer)
    found, _ = run(dispatch, replicate(restored), images, [3])
    assert_same_bits(found, expected)
    far = jax.tree.map(lambda a, b: np.abs(a - b).max(), host(found.params), start)
    assert min(jax.tree.leaves(far)) > 1e-3
