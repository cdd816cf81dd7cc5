"""The command as its users run it: modes, outputs, kills, resumption."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TINY = (
    "--config.model.num_layers=4",
    "--config.model.latent_shape=(2,)",
    "--config.model.hidden_size=8",
    "--config.training.num_steps=60",
    "--config.training.steps_per_dispatch=2",
    "--config.training.evaluate_every=10 steps",
    "--config.training.checkpoint_every=2 steps",
    "--config.evaluation.num_importance_samples=3",
    "--config.evaluation.num_examples=30",
    "--config.sampling.num_images=9",
)
COMPILATION_CACHE = tempfile.TemporaryDirectory()  # the launches compile the same programs


def command(*arguments, config="configs/digits.py"):
    return [sys.executable, "-m", "experiments.main", f"--config={config}", *arguments]


def launch(*arguments, devices=1, config="configs/digits.py", check=True):
    finished = subprocess.run(
        command(*arguments, config=config),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check:
        assert finished.returncode == 0, finished.stderr
    return finished


def environment(devices=1):
    return {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": COMPILATION_CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def train(workdir, *arguments, **options):
    return launch(f"--workdir={workdir}", *TINY, *arguments, **options)


def saved_arrays(workdir, step=60):
    """All arrays of a checkpoint by name, read with orbax alone."""
    directory = workdir / "checkpoints" / str(step) / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(directory.absolute())
    flat = {}

    def collect(prefix, node):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in items:
            if isinstance(value, (dict, list, tuple)):
                collect(f"{prefix}/{name}", value)
            elif value is not None:
                flat[f"{prefix}/{name}"] = np.asarray(value)

    collect("", tree)
    return flat


def assert_same_bits(one, other):
    assert one.keys() == other.keys() and len(one) > 50
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def logged(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def last_step(workdir):
    """The last step in the log of a run that is under way; 0 before the first."""
    path = workdir / "metrics.jsonl"
    steps = re.findall(r'^{"step": (\d+),', path.read_text() if path.exists() else "", re.MULTILINE)
    return int(steps[-1]) if steps else 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir trained without interruption."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train(workdir)
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
        "reconstructions.png",
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
    assert results["command"].startswith("python -m experiments.main --config=configs/digits.py")
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


def test_a_finished_run_is_left_alone_and_can_be_evaluated_sampled_and_reported(finished):
    before = saved_arrays(finished)
    assert "is complete" in train(finished).stdout
    train(finished, "--mode=evaluate", "--config.evaluation.num_importance_samples=7")
    results = json.loads((finished / "results.json").read_text())
    assert results["num_importance_samples"] == 7
    train(finished, "--mode=sample", "--config.sampling.num_images=5")
    samples = np.load(finished / "samples.npz")
    assert samples["images"].shape == samples["expected"].shape == (5, 8, 8, 1)
    assert set(np.unique(samples["images"])) == {0.0, 1.0}
    (finished / "report.html").unlink()
    train(finished, "--mode=report")
    assert (finished / "report.html").stat().st_size > 10_000
    assert_same_bits(before, saved_arrays(finished))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_ends_as_if_it_had_not_been_killed(finished, tmp_path, seed):
    workdir = tmp_path / "killed"
    generator = random.Random(seed)
    kill_after_step = generator.randrange(4, 54)
    process = subprocess.Popen(
        command(f"--workdir={workdir}", *TINY),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while last_step(workdir) < kill_after_step:
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(generator.random() * 0.02)
    process.kill()
    process.wait()
    assert not (workdir / "results.json").exists()
    train(workdir)
    assert_same_bits(saved_arrays(finished), saved_arrays(workdir))
    ours, theirs = (
        [{**record, "images_per_second": None} for record in logged(directory)]
        for directory in (workdir, finished)
    )
    assert ours == theirs


def test_sigterm_saves_and_exits_cleanly_and_another_number_of_devices_resumes(finished, tmp_path):
    workdir = tmp_path / "stopped"
    slow = ("--config.training.checkpoint_every=1000 steps",)
    process = subprocess.Popen(
        command(f"--workdir={workdir}", *TINY, *slow),
        cwd=ROOT,
        env=environment(devices=4),
        stderr=subprocess.PIPE,
        text=True,
    )
    while last_step(workdir) < 6:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
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


def test_help_names_the_modes():
    shown = launch("--help")
    assert "train|evaluate|sample|report" in shown.stdout
