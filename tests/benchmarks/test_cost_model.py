"""Counts by arithmetic beside JAX's own: of parameters, and of operations without loops."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from benchmarks import cost_model, importance, production, unrolled
from configs import cifar_checkerboard, cifar_maf, mnist_mlp, mnist_resnet
from sere_jax.config import model_config

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.mark.parametrize(
    "config",
    [
        mnist_mlp.get_config(),
        mnist_mlp.get_config("case1"),
        mnist_mlp.get_config("dlgm"),
        mnist_mlp.get_config("all_blocks"),
        mnist_mlp.get_config("context2"),
        cifar_checkerboard.get_config(),
        cifar_checkerboard.get_config("best"),
        cifar_maf.get_config("maf5"),
    ],
)
def test_parameters_are_those_of_the_model(config):
    model = sere_jax.create_model(config)
    shapes = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    counted = cost_model.num_parameters(model.config)
    assert counted == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def unrolled_models():
    mlp = mnist_mlp.get_config()
    mlp.model.num_layers = 2
    resnet = cifar_checkerboard.get_config("data_context4")
    resnet.model.update(num_layers=4, latent_shape=(16, 16, 2), hidden_size=128, num_mixtures=5)
    return [unrolled.UnrolledSeReVAE(model_config(config)) for config in (mlp, resnet)]


def shapes_of(model, batch_size):
    params = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    return params, jax.ShapeDtypeStruct((batch_size, *model.config.data_shape), jnp.float32)


def operations(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("model", unrolled_models(), ids=["mlp", "resnet"])
def test_operations_of_a_gradient_are_those_of_its_program(model):
    batch_size = 200 if model.config.network == "mlp" else 4

    def objective(params, x):
        return jnp.mean(sere_jax.objective(model, params, x, jax.random.key(0)).value)

    counted = cost_model.training_operations(model.config, batch_size)
    program = operations(jax.grad(objective), *shapes_of(model, batch_size))
    assert counted == pytest.approx(program, rel=0.04)


def test_operations_of_the_likelihood_are_those_of_its_program():
    model, _ = unrolled_models()
    params, x = shapes_of(model, 20)

    def log_weights(params, x, noise):
        variables = {"params": params}
        observed = model.apply(variables, x, method="observe")
        return model.apply(variables, x, observed, noise, method="log_weights")

    num_layers, *event_shape = model.noise_shape
    noise = jax.ShapeDtypeStruct((num_layers, 30, 20, *event_shape), jnp.float32)
    counted = cost_model.evaluation_operations(model.config, num_images=20, num_samples=30)
    assert counted == pytest.approx(operations(log_weights, params, x, noise), rel=0.04)


def test_what_is_not_counted_is_refused():
    for config in (
        mnist_mlp.get_config("shared_encoder"),
        mnist_resnet.get_config(),
        cifar_maf.get_config("sere_maf"),
    ):
        with pytest.raises(ValueError, match="not counted"):
            cost_model.num_parameters(model_config(config))


def test_the_slowest_part_and_the_all_reduce_make_a_step():
    cost = cost_model.Cost(parameters=10**6, operations=10**9, activations=0, kernels=100)
    device = cost_model.Accelerator("d", flops=1e12, bandwidth=1e12, link=1e9, devices_per_node=8)

    assert cost_model.predict(cost, device, batch_size=4).seconds == pytest.approx(4e-3)
    assert cost_model.predict(cost, device, batch_size=4).limit == "arithmetic"
    # 7/8 of 4 MB leave and 7/8 arrive, at 1 GB/s, in two times three messages.
    on_eight = cost_model.predict(cost, device, batch_size=4, num_devices=8)
    assert on_eight.all_reduce == pytest.approx(7e-3 + 6 * cost_model.HOP_SECONDS)
    efficiency = cost_model.weak_efficiency(cost, device, 4, 8)
    assert efficiency == pytest.approx(4e-3 / on_eight.seconds)
    split = cost_model.predict(cost, device, batch_size=1, num_devices=8)
    strong = cost_model.strong_efficiency(cost, device, 8, 8)
    assert strong == pytest.approx(8e-3 / (8 * split.seconds))


def test_the_rate_between_nodes_is_that_of_all_their_cards():
    device = cost_model.Accelerator(
        "d", flops=1, bandwidth=1, link=100.0, network=2.0, devices_per_node=8
    )
    within, between = (device.all_reduce_seconds(10**6, num) for num in (8, 16))
    assert within == pytest.approx(2 * 7 / 8 * 10**6 / 100, rel=1e-3)
    assert between == pytest.approx(2 * 15 / 16 * 10**6 / 16, rel=1e-3)


def test_the_page_has_the_tables(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cost_model"])
    cost_model.main()
    page = PAGE.read_text()
    for line in capsys.readouterr().out.splitlines():
        assert line in page


def test_repeated_images_have_the_same_likelihood(quick_compilation):
    config = production.reduced_mlp(mnist_mlp.get_config(), quick=True)
    model = sere_jax.create_model(config)
    params = sere_jax.init(model, jax.random.key(0))
    x = jnp.asarray(production.random_images(config, 3) > 127, jnp.float32)
    arguments = (model, params, x, jax.random.key(1), 20)
    ours = sere_jax.log_likelihood(*arguments)
    theirs = importance.log_likelihood_of_repeated_images(*arguments)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_a_machine_of_ones_own_computes_and_moves_in_turn():
    cost = cost_model.Cost.of(model_config(mnist_mlp.get_config()))
    machine = cost_model.Accelerator("here", 1e9, 2e9)
    (line,) = cost_model.machine_table({"mnist_mlp": (cost, 10)}, machine).splitlines()[2:]
    arithmetic, memory, total = (float(cell) for cell in line.strip("|").split("|")[1:])
    assert arithmetic == pytest.approx(1e3 * 10 * cost.operations / 1e9, rel=1e-3)
    assert memory == pytest.approx(1e3 * cost.bytes_moved(10) / 2e9, rel=1e-3)
    assert total == pytest.approx(arithmetic + memory, rel=1e-3)
