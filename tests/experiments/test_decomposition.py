"""Where the nats are: against closed forms, and models whose posterior is known."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import ROOT, TINY, launch
from scipy import stats

import sere_jax
from configs import base
from experiments import decompose
from experiments.system.errors import UserError
from experiments.training import decomposition
from sere_jax.functions import likelihood_and_elbo

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=["sere_vae", "ladder_vae", "iaf_vae"])
def model_and_data(request):
    config = base.get_config()
    config.model.update(data_shape=(2, 3, 1), latent_shape=(2,), hidden_size=8)
    config.model.update(system=request.param, num_layers=1 if request.param == "iaf_vae" else 3)
    model = sere_jax.create_model(config)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 2, 3, 1)), jnp.float32)
    return model, sere_jax.init(model, jax.random.key(0)), x, jax.random.split(jax.random.key(1), 5)


def test_without_a_search_bounds_are_those_of_the_library(model_and_data):
    model, params, x, keys = model_and_data
    found = decomposition.bounds(model, params, x, keys, num_samples=12, samples_at_once=4)
    noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)[1]
    expected = likelihood_and_elbo(model, params, x, noise_keys, 12)
    np.testing.assert_allclose(found.log_likelihood, expected[0], rtol=1e-5)
    np.testing.assert_allclose(found.elbo, expected[1], rtol=1e-5)


def test_a_search_raises_both_bounds_of_each_image(model_and_data):
    model, params, x, keys = model_and_data
    before, after = (
        decomposition.bounds(
            model, params, x, keys, num_samples=1000, samples_at_once=500, search_steps=steps
        )
        for steps in (0, 200)
    )
    assert (after.elbo > before.elbo).all()
    # The weights of a narrow posterior have heavy tails, so that the likelihood comes out low too.
    assert (after.log_likelihood > before.log_likelihood - 0.05).all()
    assert (after.elbo <= after.log_likelihood).all()


def test_differences_are_adjusted_for_what_groups_differ_in():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.0, 1.0, (400, 2)), rng.normal(0.0, 1.0, (300, 2))
    effect = np.array([3.0, -2.0])
    values = [
        columns @ effect + shift + rng.normal(0.0, 0.1, len(columns))
        for columns, shift in ((first, 0.5), (second, 0.0))
    ]
    difference, error = decomposition.adjusted_difference(*values, (first, second))
    assert abs(difference - 0.5) < 4 * error < 0.1


def test_without_covariates_an_adjusted_difference_is_that_of_the_means():
    rng = np.random.default_rng(1)
    first, second = rng.normal(2.0, 1.0, 50), rng.normal(1.0, 3.0, 70)
    nothing = np.zeros((50, 0)), np.zeros((70, 0))
    difference, error = decomposition.adjusted_difference(first, second, nothing)
    assert difference == pytest.approx(first.mean() - second.mean())
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert difference / error == pytest.approx(welch.statistic, rel=0.02)


def test_more_ink_and_longer_edges_are_harder():
    images = np.zeros((3, 6, 6, 1), np.uint8)
    images[1, 2:4, 2:4] = 255  # a square
    images[2, ::2] = 255  # stripes
    columns = decomposition.hardness(images)
    assert columns.shape == (3, 3)
    assert (np.diff(columns, axis=0) > 0).all()
    np.testing.assert_allclose(columns.mean(0), 0, atol=1e-12)
    for height, width in ((1, 6), (6, 1), (1, 1)):
        assert np.isfinite(decomposition.hardness(images[:, :height, :width])).all()


def test_other_images_than_those_trained_on_are_refused(uninterrupted, tmp_path, monkeypatch):
    shutil.copy(uninterrupted / "config.json", tmp_path)
    monkeypatch.setattr(decompose, "load_weights", lambda *_: (None, {"dataset_fingerprint": "0"}))
    with pytest.raises(UserError, match="images of 'digits' are not those that --workdir="):
        decompose.decompose_run(tmp_path, decompose.Effort(2, 1, 1))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num_images=1", "--num_images=1 must be at least 2"),
        ("--num_samples=0", "--num_samples=0 must be at least 1"),
        ("--steps=-3", "--steps=-3 must be at least 1"),
    ],
)
def test_numbers_that_are_too_small_are_named_by_their_flags(flag, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["decompose", "--workdir=runs/none", flag])
    with pytest.raises(SystemExit):
        decompose.main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path):
    workdir = tmp_path / "run"
    launch(f"--workdir={workdir}", *TINY, config="examples/bijector.py")  # it imports that again
    arguments = (f"--workdir={workdir}", "--num_images=20", "--num_samples=20", "--steps=5")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.decompose", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    written = json.loads((workdir / "decomposition.json").read_bytes())
    assert written["num_images"] == 20 and written["step"] == 60
    assert len(written["nats"]) == 7
    for name, (mean, error) in written["nats"].items():
        assert f"| {name} | {mean:.2f} ± {error:.2f} |" in done.stdout
