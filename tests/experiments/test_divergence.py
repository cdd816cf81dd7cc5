"""Trainings that diverge to finite numbers, and healthy ones that look like it for a moment."""

import json
import math
import re

import numpy as np
import pytest
from command_line import ROOT, launch, logged

from configs import base, cifar_maf
from experiments.run_folder.configuration import get_config
from experiments.run_folder.metrics import read_metrics
from experiments.training.evaluation import bits_of_noise, bits_per_dim
from experiments.training.experiment import create_experiment
from experiments.training.records import has_diverged
from sere_jax import create_model

KEPT = sorted(path.parent for path in (ROOT / "results").rglob("metrics.jsonl.gz"))


def bits_at_evaluations(workdir):
    """Bits/dim of the last updates and of the validation images, at each evaluation.

    Logs of earlier versions have none.
    """
    training, pairs = math.nan, []
    for record in read_metrics(workdir):
        if "bits_per_dim" not in record:
            continue
        bits = math.nan if record["bits_per_dim"] is None else record["bits_per_dim"]
        if record["split"] == "train":
            training = bits
        if record["split"] == "validation":
            pairs.append((training, bits))
    return pairs


def test_no_kept_run_counts_as_diverged_whatever_its_batches():
    worst = 0.0
    for workdir in KEPT:
        of_noise = bits_of_noise(create_model(get_config(str(workdir))).config, max_value=255)
        for training, validation in bits_at_evaluations(workdir):
            assert not has_diverged(training, validation, of_noise), workdir
            worst = max(worst, training / of_noise)
    assert worst > 1e6  # MAF with batches that had been bad, and were left behind


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [
        (3.0, 3.0, False),
        (1e9, 3.0, False),  # a bad batch
        (3.0, 1e9, False),  # overfitting
        (15.9, 16.1, False),
        (16.1, 16.1, True),
        (1e9, math.inf, True),
        (math.nan, 3.0, False),
        (3.0, math.nan, False),
        (math.nan, 1e9, True),
        (math.nan, math.nan, True),
    ],
)
def test_both_the_updates_and_the_validation_images_have_to_be_bad(training, validation, expected):
    assert has_diverged(training, validation, 8.0) == expected


@pytest.mark.parametrize(
    ("data_layer", "max_value", "nats"),
    [
        ("bernoulli", 255, math.log(2)),
        ("discretized_logistic_mixture", 255, math.log(256)),
        ("gaussian", 15, 0.0),  # a density of 1 on [0, 1]
    ],
)
def test_uniform_noise_is_a_model_to_which_all_images_are_equal(data_layer, max_value, nats):
    config = base.get_config()
    config.model.data_layer = data_layer
    model = create_model(config).config
    expected = bits_per_dim(64 * nats, model, max_value)
    assert bits_of_noise(model, max_value) == pytest.approx(expected)


def test_uniform_noise_of_a_flow_is_uniform_in_pixels_and_not_in_logits():
    experiment = create_experiment(tiny_flow())
    images, rows = experiment.dataset.validation, np.arange(len(experiment.dataset.validation))
    x, _ = experiment.evaluator.to_data_space(images, rows, "validation")
    squeezed = 1 / (1 + np.exp(-np.asarray(x, np.float64)))
    log_slope = np.log(0.9) - np.log(squeezed) - np.log1p(-squeezed)  # dx/dv
    nll = log_slope.sum(axis=(1, 2, 3)).mean()
    expected = experiment.bits_per_dim(nll, "validation")
    assert bits_of_noise(experiment.model.config, 16) == pytest.approx(expected, rel=1e-4)


FLOW = {
    "dataset.name": "digits",
    "model.data_shape": (8, 8, 1),
    "model.flow_hidden_size": 32,
    "model.num_flows": 3,
    "training.batch_size": 50,
    "training.num_epochs": 2,
    "training.steps_per_dispatch": 10,
    "training.evaluate_every": "10 steps",
    "training.checkpoint_every": "10 steps",
    "evaluation.num_importance_samples": 1,
    "evaluation.num_examples": 20,
    "sampling.num_images": 0,
    "sampling.completion_steps": 0,
}


def tiny_flow():
    config = cifar_maf.get_config("maf5")
    config.update_from_flattened_dict(FLOW)
    return config


def train_flow(workdir, learning_rate, warmup="5 steps", check=True):
    changed = FLOW | {"training.warmup": warmup}
    fields = [f"--config.{name}={value}" for name, value in changed.items()]
    rate = f"--config.training.learning_rate={learning_rate}"
    config = "configs/cifar_maf.py:maf5"
    return launch(f"--workdir={workdir}", *fields, rate, config=config, check=check)


@pytest.mark.slow
def test_a_flow_that_diverges_is_one_error_and_its_best_checkpoint_stays(tmp_path):
    healthy = tmp_path / "healthy"
    train_flow(healthy, 5e-4)
    results = json.loads((healthy / "results.json").read_text())
    assert results["bits_per_dim"] < math.log2(17)

    for _ in range(2):  # the relaunch comes to the same end
        finished = train_flow(tmp_path / "diverged", 0.3, "40 steps", check=False)
        assert finished.returncode == 3, finished.stderr
        (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
        story = re.search(
            r"stopped at step (\d+): the training has diverged, with (\S+) bits/dim in the last "
            r"updates and (\S+) of the median validation image \(uniform noise has 4.087\); the "
            r"best checkpoint, of step (\d+), stays.* lower config.training.learning_rate",
            line,
        )
        assert story, line
        step, best = int(story[1]), int(story[4])
        assert min(float(story[2]), float(story[3])) > 2 * math.log2(17)
        assert logged(tmp_path / "diverged")[-1]["step"] == step > best
        assert not (tmp_path / "diverged" / "results.json").exists()
