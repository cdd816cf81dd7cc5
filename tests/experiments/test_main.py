"""The command as its users run it: modes, outputs, signals."""

import json
import shutil
import signal

import numpy as np
import pytest
from command_line import (
    ROOT,
    assert_same_bits,
    last_step,
    launch,
    logged,
    saved_arrays,
    start,
    train,
    wait_until,
)


@pytest.fixture(scope="module")
def finished(uninterrupted, tmp_path_factory):
    """A copy of a run's workdir that the tests may change."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    shutil.copytree(uninterrupted, workdir)
    return workdir


def test_a_run_leaves_all_that_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "results.json",
        "report.html",
        "samples.png",
        "build_up.png",
        "reconstructions.png",
        "residual_layers.png",
        "interpolation.png",
        "learning_curves.png",
        "kl_per_layer.png",
        "tensorboard",
    }
    results = json.loads((finished / "results.json").read_text())
    assert results["num_examples"] == 30
    assert results["num_importance_samples"] == 3
    assert len(results["kl_per_layer"]) == 4
    assert results["bits_per_dim"] == pytest.approx(results["nll"] / (64 * np.log(2)))
    assert results["num_params"] == sum(
        array.size for name, array in saved_arrays(finished).items() if name.startswith("/params")
    )
    assert 0 < results["nll"] < 64 * np.log(2) and results["nll_stderr"] > 0
    images = np.load(finished / "test_images.npz")
    assert results["nll"] == pytest.approx(-images["log_likelihood"].mean())
    assert results["elbo"] == pytest.approx(images["elbo"].mean())
    assert len(images["elbo"]) == 30
    assert results["command"].startswith("python -m experiments.main --config=configs/digits.py")
    assert results["evaluation_command"] == results["command"]
    assert results["evaluation_git_commit"] == results["git_commit"] != ""
    config = json.loads((finished / "config.json").read_text())
    assert config["model"]["hidden_size"] == 8
    records = logged(finished)
    steps = [record["step"] for record in records if record["split"] == "validation"]
    assert steps == [10, 20, 30, 40, 50, 60]
    best = max(
        (record for record in records if record["split"] == "validation"),
        key=lambda record: record["elbo"],
    )
    assert results["step"] == best["step"]
    assert results["validation_elbo"] == best["elbo"]
    assert best["bits_per_dim"] == pytest.approx(-best["elbo"] / (64 * np.log(2)))
    tested = [record for record in records if record["split"] == "test"]
    assert [record["step"] for record in tested] == [30, 60]
    halfway = np.load(finished / "test_elbo_30.npz")["elbo"]
    assert tested[0]["elbo"] == pytest.approx(halfway.mean())
    assert tested[0]["bits_per_dim"] == pytest.approx(-halfway.mean() / (64 * np.log(2)))


def test_a_finished_run_is_left_alone_and_can_be_evaluated_sampled_and_reported(finished):
    before = saved_arrays(finished)
    command = json.loads((finished / "results.json").read_text())["command"]
    assert "is complete" in train(finished).stdout
    train(finished, "--mode=evaluate", "--config.evaluation.num_importance_samples=7")
    results = json.loads((finished / "results.json").read_text())
    assert results["num_importance_samples"] == 7
    assert results["command"] == command and "--mode=evaluate" not in command
    assert "--mode=evaluate" in results["evaluation_command"]
    train(finished, "--mode=sample", "--config.sampling.num_images=5")
    samples = np.load(finished / "samples.npz")
    assert samples["images"].shape == samples["expected"].shape == (5, 8, 8, 1)
    assert set(np.unique(samples["images"])) == {0.0, 1.0}
    (finished / "report.html").unlink()
    train(finished, "--mode=report")
    assert (finished / "report.html").stat().st_size > 10_000
    assert_same_bits(before, saved_arrays(finished))


def test_all_but_training_needs_no_configuration_but_the_workdir_s(finished, tmp_path):
    workdir = f"--workdir={finished}"
    launch(workdir, "--mode=sample", "--config.sampling.num_images=3", config=None)
    assert np.load(finished / "samples.npz")["images"].shape == (3, 8, 8, 1)

    def refusal(*arguments):
        finished = launch(*arguments, config=None, check=False)
        assert finished.returncode == 2
        return finished.stderr

    assert "another configuration (model.num_layers: 4 -> 5" in refusal(
        workdir, "--mode=report", "--config.model.num_layers=5"
    )
    missing = f"--workdir={tmp_path / 'missing'}"
    assert f"there is no run in {missing}; train first" in refusal(missing, "--mode=evaluate")
    assert "give it, or the --workdir of a run" in refusal("--mode=report")
    assert "try --config=configs/digits.py" in refusal(workdir)


def test_sigterm_saves_and_exits_cleanly_and_another_number_of_devices_resumes(finished, tmp_path):
    workdir = tmp_path / "stopped"
    slow = ("--config.training.checkpoint_every=1000 steps",)
    with start(workdir, *slow, devices=4) as process:
        wait_until(lambda: last_step(workdir) >= 6, process)
        process.send_signal(signal.SIGTERM)
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 0
    assert "SIGTERM: saved at step" in stderr
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 6 <= step < 60 and step == last_step(workdir)
    train(workdir, *slow, devices=1)
    one, other = saved_arrays(finished), saved_arrays(workdir)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-2, atol=2e-4, err_msg=name)


def test_a_workdir_of_another_configuration_is_refused_and_left_alone(finished):
    before = saved_arrays(finished)
    refused = train(finished, "--config.training.learning_rate=0.5", check=False)
    assert refused.returncode == 2
    assert "training.learning_rate: 0.002 -> 0.5" in refused.stderr
    assert_same_bits(before, saved_arrays(finished))


def test_help_names_the_modes_and_the_configurations():
    shown = launch("--help").stdout
    assert "train|evaluate|sample|report|export" in shown
    for file in (ROOT / "configs").glob("[!_]*.py"):
        assert f"  configs/{file.name}\n" in shown
    assert "Quickstart: a small SeRe-VAE on scikit-learn's 8x8 handwritten digits" in shown
    assert str(ROOT) not in shown
    assert "--[no]distributed" in launch("--helpfull", config=None).stdout
