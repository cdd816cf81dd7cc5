"""Learning rate, weight of the KL and optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sere_jax
from configs import base
from experiments.optimization import schedules

STEPS = {"steps_per_epoch": 40, "total_steps": 1000}


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_learning_rate_warms_up_linearly_and_then_follows_its_curve(name):
    training = base.get_config().training
    training.learning_rate, training.warmup = 2e-3, "100 steps"
    training.learning_rate_schedule, training.final_learning_rate_factor = name, 0.1
    schedule = schedules.learning_rate_schedule(training, **STEPS)
    actual = np.array([schedule(step) for step in range(1001)])
    step = np.arange(1001)
    progress = np.clip((step - 100) / 900, 0, 1)
    decay = {
        "constant": np.ones(1001),
        "linear": 1 - 0.9 * progress,
        "cosine": 0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2,
    }[name]
    expected = 2e-3 * np.where(step < 100, (step + 1) / 100, decay)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_warmup_never_takes_more_than_half_of_a_short_training():
    training = base.get_config().training
    training.warmup = "500 steps"
    schedule = schedules.learning_rate_schedule(training, steps_per_epoch=1, total_steps=10)
    assert schedule(5) == pytest.approx(training.learning_rate)


def test_kl_weight_rises_linearly_from_its_start_to_one():
    training = base.get_config().training
    training.kl_weight_start, training.kl_warmup = 0.2, "50%"
    schedule = schedules.kl_weight_schedule(training, **STEPS)
    weights = [float(schedule(step)) for step in (0, 250, 500, 999)]
    np.testing.assert_allclose(weights, [0.2, 0.6, 1.0, 1.0], rtol=1e-6)


def test_schedules_that_outlast_every_training_are_compiled():
    training = base.get_config().training
    training.kl_warmup, training.kl_weight_start = "1e9 epochs", 0.25
    schedule = schedules.kl_weight_schedule(training, **STEPS)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(900)), 0.25, atol=1e-6)


def test_without_a_warmup_the_kl_weight_is_one():
    training = base.get_config().training
    training.kl_warmup = "0 steps"
    assert float(schedules.kl_weight_schedule(training, **STEPS)(0)) == 1.0


@pytest.mark.parametrize("optimizer", ["adam", "adamax"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_optimizer_is_optax_own(optimizer, weight_decay):
    training = base.get_config().training
    training.optimizer, training.weight_decay = optimizer, weight_decay
    params, gradient = np.array([1.0, -2.0], np.float32), np.array([30.0, 40.0], np.float32)
    ours = schedules.create_optimizer(training, optax.constant_schedule(0.1))
    library = {"adam": optax.adamw, "adamax": optax.adamaxw}[optimizer]
    theirs = library(0.1, weight_decay=weight_decay)
    actual, _ = ours.update(gradient, ours.init(params), params)
    expected, _ = theirs.update(gradient, theirs.init(params), params)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_updates_are_as_long_as_they_may_be(weight_decay):
    training = base.get_config().training
    training.update(weight_decay=weight_decay, max_update_rms=0.3)
    params = {"kernel": np.full((2, 3), 0.5, np.float32), "bias": np.zeros(3, np.float32)}
    gradients = [{"kernel": np.ones((2, 3)), "bias": np.r_[1.0, 0.0, 0.0]}] * 10
    gradients.append(jax.tree.map(lambda gradient: 20.0 * gradient, gradients[0]))
    limited = schedules.create_optimizer(training, optax.constant_schedule(0.1))
    training.max_update_rms = 0.0
    free = schedules.create_optimizer(training, optax.constant_schedule(0.1))
    states = limited.init(params), free.init(params)
    for gradient in gradients:
        (short, first), (long, second) = (
            rule.update(gradient, state, params)
            for rule, state in zip((limited, free), states, strict=True)
        )
        states = first, second
        for name, decay in {"kernel": 0.1 * weight_decay * 0.5, "bias": 0.0}.items():
            ours, theirs = short[name] + decay, long[name] + decay
            length = np.sqrt(np.mean(np.square(theirs))) / 0.1
            np.testing.assert_allclose(ours, theirs * min(1.0, 0.3 / length), rtol=1e-5)
            assert length > 0.3


LAYER = "hierarchy/layers/"
# Beginnings of names.
GENERATIVE = [f"{LAYER}{part}" for part in ("prior", "bijector", "top_down", "data_layer")]
IS_DECAYED = {
    "all": lambda name: True,
    "generative": lambda name: any(name.startswith(start) for start in GENERATIVE),
    "kernels": lambda name: name.endswith(("/kernel", "first_kernel", "second_kernel", "_head")),
}


@pytest.mark.parametrize("which", IS_DECAYED)
@pytest.mark.parametrize(
    ("optimizer", "sees_blocks"), [("adam", True), ("adamax", False), ("muon", True)]
)
def test_weight_decay_shrinks_the_chosen_parameters_and_no_other(which, optimizer, sees_blocks):
    config = base.get_config()
    config.model.update(data_shape=(2, 3, 1), num_layers=3, latent_shape=(2,), hidden_size=8)
    config.model.update(bijector="spline_coupling", encoder="shared", condition_size=2)
    config.model.update(couple_data_to_prior=sees_blocks, state_size=0 if sees_blocks else 3)
    model = sere_jax.create_model(config)
    params = jax.tree.map(lambda leaf: leaf + 0.5, sere_jax.init(model, jax.random.key(0)))
    gradient = jax.tree.map(jnp.cos, params)

    def step(decay):
        config.training.update(weight_decay=decay, weight_decay_on=which, optimizer=optimizer)
        rule = schedules.create_optimizer(config.training, optax.constant_schedule(0.1))
        update, _ = rule.update(gradient, rule.init(params), params)
        return optax.apply_updates(params, update)

    chosen = set()
    for (path, before), plain, decayed in zip(
        jax.tree_util.tree_leaves_with_path(params),
        *(jax.tree.leaves(step(decay)) for decay in (0.0, 0.25)),
        strict=True,
    ):
        name = "/".join(entry.key for entry in path)
        if IS_DECAYED[which](name):
            chosen.add(name.removeprefix(LAYER).partition("/")[0])
            np.testing.assert_allclose(decayed - plain, -0.1 * 0.25 * before, rtol=1e-4, atol=1e-6)
        else:
            np.testing.assert_array_equal(decayed, plain)
    parts = {"prior", "prior_observed" if sees_blocks else "prior_condition"}
    parts |= {"bijector", "bijector_condition", "data_layer"}
    parts |= set() if sees_blocks else {"top_down"}
    others = {"posterior", "refinement", "hierarchy"}  # the latter is the shared encoder
    assert chosen == parts | (set() if which == "generative" else others)


@pytest.mark.parametrize("which", IS_DECAYED)
@pytest.mark.parametrize("optimizer", ["adam", "adamax", "muon"])
def test_no_optimizer_changes_what_init_computes_of_images(optimizer, which):
    config = base.get_config()
    config.model.update(data_shape=(2, 2, 3), num_layers=2, latent_shape=(2,), hidden_size=8)
    config.model.update(data_layer="masked_autoregressive_flow", flow_hidden_size=16)
    config.model.flow_direct_connections = True
    config.training.update(weight_decay=0.5, weight_decay_on=which, optimizer=optimizer)
    model = sere_jax.create_model(config)
    x = np.random.default_rng(0).normal(size=(20, 2, 2, 3)).astype(np.float32)
    params = sere_jax.init(model, jax.random.key(0), x)

    def loss(params):
        return -sere_jax.elbo(model, params, x, jax.random.key(1)).mean()

    rule = schedules.create_optimizer(config.training, optax.constant_schedule(0.1))
    updates, _ = rule.update(jax.grad(loss)(params), rule.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        is_constant = "whitening" in jax.tree_util.keystr(path)
        assert np.any(update) != is_constant, path


def test_muon_orthogonalizes_each_matrix_on_its_own_and_adam_does_the_rest():
    generator = np.random.default_rng(0)

    def values(*shape):
        return generator.normal(size=shape).astype(np.float32)

    def tree():
        return {
            "dense": {"kernel": values(5, 7), "bias": values(7)},
            "layers": {
                "dense": {"kernel": values(3, 6, 4), "bias": values(3, 4)},
                "conv": {"kernel": values(2, 3, 3, 2, 5), "bias": values(2, 5)},
                "masked": {"head_kernel_dense_0": values(3, 4, 2, 6)},
            },
            "conv": {"kernel": values(3, 3, 2, 4)},
        }

    training = base.get_config().training
    training.update(optimizer="muon", weight_decay=0.1)
    schedule = optax.linear_schedule(0.1, 0.01, 10)
    params, gradients = tree(), [tree() for _ in range(3)]

    def train(rule, params, gradients):
        state = rule.init(params)
        for gradient in gradients:
            updates, state = rule.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    ours = train(schedules.create_optimizer(training, schedule), params, gradients)

    on_matrix = optax.contrib.muon(schedule, weight_decay=0.1, consistent_rms=0.2)
    on_rest = optax.adamw(schedule, weight_decay=0.1)
    ours, before = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (ours, params))
    steps = [dict(jax.tree_util.tree_leaves_with_path(gradient)) for gradient in gradients]
    for path, found in ours.items():
        of_leaf = [before[path], *(step[path] for step in steps)]
        if path[-1].key != "kernel":
            expected = train(on_rest, of_leaf[0], of_leaf[1:])
        else:
            num_matrices = len(found) if path[0].key == "layers" else 1
            shape = (num_matrices, -1, found.shape[-1])
            of_leaf = [leaf.reshape(shape) for leaf in of_leaf]
            matrices = [train(on_matrix, start, own) for start, *own in zip(*of_leaf, strict=True)]
            expected = np.reshape(matrices, found.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=str(path))
        assert np.abs(found - before[path]).max() > 1e-2
