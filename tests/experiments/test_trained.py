"""Loading the model of a workdir."""

import json

import jax
import numpy as np
import optax
import pytest
from command_line import saved_arrays
from sklearn.datasets import load_digits

import sere_jax
from configs import digits
from experiments import trained
from experiments.optimization import schedules
from experiments.system.errors import UserError
from experiments.training.state import init_state, state_template

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_loaded_model_has_the_averages_of_a_checkpoint(uninterrupted, checkpoint, caplog):
    before = sorted(uninterrupted.rglob("*"))
    model, params = trained.load(uninterrupted, checkpoint=checkpoint)
    assert not [record for record in caplog.records if record.levelname != "INFO"]

    saved = saved_arrays(uninterrupted)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        end = "/".join(part.key for part in path)
        (name,) = [name for name in saved if "ema_params" in name and name.endswith(f"/{end}")]
        assert leaf.shape == saved[name].shape
        if checkpoint == "last":
            np.testing.assert_array_equal(leaf, saved[name])
    assert sorted(uninterrupted.rglob("*")) == before
    images = load_digits().images[:50, ..., None] / 16
    x = (images > 0.5).astype(np.float32)
    trained_elbo = sere_jax.elbo(model, params, x, jax.random.key(0)).mean()
    untrained = sere_jax.init(model, jax.random.key(0))
    assert trained_elbo > sere_jax.elbo(model, untrained, x, jax.random.key(0)).mean() + 1


@pytest.mark.parametrize("evaluated", ["best", "last"])
def test_without_a_choice_the_weights_are_those_that_were_evaluated(
    uninterrupted, tmp_path, monkeypatch, evaluated
):
    config = json.loads((uninterrupted / "config.json").read_text())
    config["evaluation"]["checkpoint"] = evaluated
    (tmp_path / "config.json").write_text(json.dumps(config))

    def load(workdir, template, which):
        assert (workdir, which) == (tmp_path, evaluated)
        return {}, {}

    monkeypatch.setattr("experiments.training.trained_model.load_weights", load)
    assert trained.load(tmp_path)[1] == {}


def test_what_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no run in .*missing; train first"):
        trained.load(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(sere_jax.ConfigError, match=r"config\.model is missing"):
        trained.load(tmp_path)
    with pytest.raises(ValueError, match="checkpoint='newest' must be 'best' or 'last'"):
        trained.load(tmp_path, checkpoint="newest")


def test_with_x64_a_checkpoint_comes_as_it_was_saved(uninterrupted):
    expected = trained.load(uninterrupted)[1]
    jax.config.update("jax_enable_x64", True)
    try:
        params = trained.load(uninterrupted)[1]
    finally:
        jax.config.update("jax_enable_x64", False)
    for leaf, other in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, other)


def test_with_x64_all_optimizers_have_the_state_that_was_saved():
    model = sere_jax.create_model(digits.get_config())
    for name in ("adam", "adamax", "muon"):
        training = digits.get_config().training
        training.optimizer = name
        optimizer = schedules.create_optimizer(training, optax.constant_schedule(0.0))
        expected = init_state(model, optimizer, 0)
        with jax.enable_x64(True):
            template = state_template(model, optimizer, 0)
        types = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (template, expected)]
        assert types[0] == types[1]


def test_the_images_of_a_run_are_those_of_its_configuration(uninterrupted, tmp_path):
    data = trained.load_data(uninterrupted)
    assert data.name == "digits" and data.image_shape == (8, 8, 1)
    everything = np.concatenate([data.train, data.validation, data.test])
    expected = load_digits().images.astype(np.uint8)
    np.testing.assert_array_equal(
        np.sort(everything.reshape(len(everything), -1), axis=0),
        np.sort(expected.reshape(len(expected), -1), axis=0),
    )
    with pytest.raises(UserError, match="there is no run in"):
        trained.load_data(tmp_path)
