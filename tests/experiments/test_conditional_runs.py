"""Runs whose model has a condition: classes, or how training images were transformed."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from command_line import (
    TINY,
    assert_same_bits,
    last_step,
    launch,
    logged,
    saved_arrays,
    start,
    train,
    wait_until,
    without_speed,
)

import sere_jax
from configs import digits
from experiments import trained
from experiments.data import load_dataset
from experiments.distributed.devices import replicate
from experiments.reporting.model_pictures import save_pictures, save_samples
from experiments.system.errors import UserError
from experiments.training.experiment import create_experiment

LABEL = ("--config.dataset.condition=label", "--config.model.condition_size=10")
AFFINE = (
    "--config.dataset.condition=affine",
    "--config.dataset.random_affine=0.9",
    "--config.dataset.random_affine_until=100%",
    "--config.model.condition_size=6",
)


def tiny(condition="label", condition_size=10, random_affine=0.5, **dataset):
    config = digits.get_config()
    config.model.update(
        num_layers=4, latent_shape=(2,), hidden_size=8, condition_size=condition_size
    )
    config.dataset.update(condition=condition, random_affine=random_affine, **dataset)
    config.evaluation.update(num_importance_samples=3, num_examples=30, batch_size=7)
    config.sampling.update(num_images=12, completion_steps=2)
    return config


def labels_of_test_images(num):
    config = digits.get_config().dataset
    with config.unlocked():
        config.condition = "label"
    return load_dataset(config).labels.test[:num]


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("condition", ["label", "affine"])
def test_images_are_evaluated_with_their_class_or_as_they_are(condition):
    size = {"label": 10, "affine": 6}[condition]
    experiment = create_experiment(tiny(condition, size))
    params = sere_jax.init(experiment.model, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    images, labels = replicate(experiment.evaluated_images()), experiment.evaluated_labels()
    rows = np.zeros((30, 6), np.float32)
    if condition == "label":
        rows = np.eye(10, dtype=np.float32)[labels_of_test_images(30)]

    elbo = experiment.evaluator.elbo(params, images, labels=labels)
    bounds = experiment.evaluator.log_likelihood(params, images, labels=labels)

    x, keys = experiment.evaluator.to_data_space(images, np.arange(30))
    expected = sere_jax.elbo(experiment.model, params, x, keys, condition=rows)
    np.testing.assert_allclose(elbo.per_image, expected, rtol=1e-5)
    expected = sere_jax.log_likelihood(experiment.model, params, x, keys, 3, condition=rows)
    np.testing.assert_allclose(bounds[0], expected, rtol=1e-5)
    others = sere_jax.log_likelihood(experiment.model, params, x, keys, 3, condition=rows[::-1] + 1)
    assert not np.allclose(bounds[0], others, rtol=1e-3)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("condition", ["label", "affine"])
def test_pictures_are_those_of_each_class_or_of_images_as_they_are(tmp_path, condition):
    size = {"label": 10, "affine": 6}[condition]
    experiment = create_experiment(tiny(condition, size))
    params = sere_jax.init(experiment.model, jax.random.key(0))
    rows = np.zeros((12, 6)) if condition == "affine" else np.eye(10)[np.arange(12) % 10]

    images, expected = save_samples(experiment.model, params, experiment.config, tmp_path)

    key = jax.random.key(0)
    ours = sere_jax.sample(experiment.model, params, key, 12, condition=rows)
    np.testing.assert_array_equal(images, ours)
    ours = sere_jax.sample(experiment.model, params, key, 12, condition=rows, expected=True)
    np.testing.assert_array_equal(expected, ours)
    save_pictures(experiment, params, np.ones((30, 4)), tmp_path)
    names = ("real_images", "samples", "reconstructions", "residual_layers", "interpolation")
    for name in (*names, "completions", "traversals"):
        assert (tmp_path / f"{name}.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"condition_size": 0},
            "condition_size=0 must be 10 with config.dataset.condition='label': one for each class",
        ),
        ({"condition_size": 9}, "condition_size=9 must be 10 with"),
        (
            {"condition": "affine"},
            "condition_size=10 must be 6 with config.dataset.condition='affine'",
        ),
        ({"condition": ""}, "condition_size=10 must be 0 with config.dataset.condition=''"),
        (
            {"condition": "affine", "random_affine": 0.0, "condition_size": 6},
            "condition='affine' tells how .*random_affine=0.0 turns none",
        ),
        ({"condition": "class"}, "dataset.condition='class' must be '' .none., affine or label"),
        ({"name": "photos"}, "condition='label' needs labels, which 'photos' has not"),
    ],
)
def test_a_condition_that_does_not_come_with_the_images_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        create_experiment(tiny(**fields))


# ---------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """The workdir of a run with labels; not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "labels"
    train(workdir, *LABEL)
    return workdir


@pytest.mark.slow
def test_figures_of_classes_add_up_to_those_of_all_images(conditional):
    results = json.loads((conditional / "results.json").read_text())
    counts = np.bincount(labels_of_test_images(30), minlength=10)
    assert counts.sum() == results["num_examples"] == 30 and (counts > 0).all()
    for name in ("nll", "elbo"):
        by_class = results[f"{name}_by_class"]
        assert len(by_class) == 10 and np.ptp(by_class) > 0
        assert np.average(by_class, weights=counts) == pytest.approx(results[name], rel=1e-9)
    report = (conditional / "report.html").read_text()
    assert "Negative log-likelihood by class" in report
    assert "class 9" in report and f"{results['nll_by_class'][9]:.2f} nats" in report
    model, params = trained.load(conditional)
    assert model.config.condition_size == 10
    x = sere_jax.sample(model, params, jax.random.key(0), 2, condition=np.eye(10)[:2])
    assert x.shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_a_run_with_labels_that_was_stopped_is_the_run_that_was_not(conditional, tmp_path):
    workdir = tmp_path / "stopped"
    with start(workdir, *LABEL) as process:
        wait_until(lambda: last_step(workdir) >= 6, process)
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert process.returncode == 0 and 6 <= last_step(workdir) < 60
    train(workdir, *LABEL)
    assert_same_bits(saved_arrays(conditional), saved_arrays(workdir))
    assert without_speed(logged(conditional)) == without_speed(logged(workdir))


@pytest.mark.slow
def test_samples_need_the_workdir_alone_and_other_labels_are_refused(conditional, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(conditional, workdir)
    launch(f"--workdir={workdir}", "--mode=sample", "--config.sampling.num_images=11", config=None)
    assert np.load(workdir / "samples.npz")["images"].shape == (11, 8, 8, 1)
    refused = launch(f"--workdir={workdir}", *TINY, check=False)
    assert refused.returncode == 2
    assert "another configuration" in refused.stderr and "condition" in refused.stderr


@pytest.mark.slow
def test_a_run_told_how_images_were_transformed_is_evaluated_as_they_are(tmp_path):
    train(tmp_path / "affine", *AFFINE)
    results = json.loads((tmp_path / "affine" / "results.json").read_text())
    assert "nll_by_class" not in results
    assert 0 < results["nll"] < 64 * np.log(2)
    model, params = trained.load(tmp_path / "affine")
    x = sere_jax.sample(model, params, jax.random.key(0), 2, condition=np.zeros((2, 6)))
    assert np.isfinite(
        sere_jax.elbo(model, params, x, jax.random.key(1), condition=np.zeros((2, 6)))
    ).all()
