"""The command as its users run it: modes, outputs, signals."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from command_line import (
    PICTURES,
    ROOT,
    TINY,
    assert_same_bits,
    last_step,
    launch,
    logged,
    saved_arrays,
    start,
    train,
    wait_until,
)

import sere_jax
from experiments import trained
from experiments.training.keys import key_for
from sere_jax.bijector import BIJECTORS

pytestmark = pytest.mark.slow


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
    assert np.all(images["elbo"] <= images["log_likelihood"])
    assert results["nll"] < -results["elbo"]
    assert results["command"].startswith("python -m experiments.main --config=configs/digits.py")
    assert results["evaluation_command"] == results["command"]
    assert results["evaluation_git_commit"] == results["git_commit"] != ""
    assert results["computer"]["versions"]["jax"] == jax.__version__
    assert results["computer"]["devices"] == ["cpu"] * len(results["computer"]["devices"]) != []
    assert results["evaluation_computer"] == results["computer"]
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
    results = json.loads((finished / "results.json").read_text())
    halfway = {**results, "step": 10, "nll": 0.0}  # evaluated before it was trained to the end
    (finished / "results.json").write_text(json.dumps(halfway))
    assert "is complete" not in train(finished).stdout
    evaluated = json.loads((finished / "results.json").read_text())
    assert (evaluated["step"], evaluated["nll"]) == (results["step"], results["nll"])
    train(finished, "--mode=evaluate", "--config.evaluation.num_importance_samples=7")
    results = json.loads((finished / "results.json").read_text())
    assert results["num_importance_samples"] == 7
    assert results["command"] == command and "--mode=evaluate" not in command
    assert "--mode=evaluate" in results["evaluation_command"]
    train(finished, "--mode=sample", "--config.sampling.num_images=5")
    none = train(finished, "--mode=sample", check=False)
    assert none.returncode == 2 and none.stderr.count("\n") == 1
    assert "num_images=0; give the number" in none.stderr
    samples = np.load(finished / "samples.npz")
    assert samples["images"].shape == samples["expected"].shape == (5, 8, 8, 1)
    assert set(np.unique(samples["images"])) == {0.0, 1.0}
    (finished / "report.html").unlink()
    train(finished, "--mode=report")
    assert (finished / "report.html").stat().st_size > 10_000
    assert_same_bits(before, saved_arrays(finished))


def test_held_out_images_are_evaluated_where_one_has_to_choose(uninterrupted, tmp_path):
    workdir = tmp_path / "chosen"
    shutil.copytree(uninterrupted, workdir)
    options = ("split=validation", "test_elbo_every=", "num_examples=20")
    options = tuple(f"--config.evaluation.{option}" for option in options)

    printed = train(workdir, "--mode=evaluate", *options).stdout

    data, (model, params) = trained.load_data(workdir), trained.load(workdir)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_for("validation"), np.arange(20))
    data_keys, model_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x = sere_jax.to_data_space(model, data.validation[:20], data_keys, data.max_value)
    expected = sere_jax.log_likelihood(model, params, x, model_keys, num_samples=3)
    results = json.loads((workdir / "results.json").read_text())
    images = np.load(workdir / "validation_images.npz")
    np.testing.assert_allclose(images["log_likelihood"], expected, rtol=1e-5)
    assert results["nll"] == pytest.approx(-expected.mean())
    assert (results["split"], results["num_examples"]) == ("validation", 20)
    assert f"validation: -log p(x) {results['nll']:.2f}" in printed
    assert "log p(x), validation set" in (workdir / "report.html").read_text()
    for name in ("test_images.npz", "test_elbo_30.npz"):  # of the evaluations before
        assert (workdir / name).read_bytes() == (uninterrupted / name).read_bytes()


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
    overridden = "--config.training.num_epochs=300"
    assert f"give both: --config=configs/digits.py {overridden}\n" in refusal(workdir, overridden)
    assert "--config.training.num_epochs sets a field of it" in refusal(missing, overridden)


def test_sigterm_saves_and_exits_cleanly_and_another_number_of_devices_resumes(finished, tmp_path):
    workdir = tmp_path / "stopped"
    slow = (
        "--config.training.checkpoint_every=1000 steps",
        "--config.training.evaluate_every=1 steps",
    )
    with start(workdir, *slow, devices=4) as process:
        wait_until(lambda: last_step(workdir) >= 6, process)
        process.send_signal(signal.SIGTERM)
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 0
    assert "SIGTERM: saved at step" in stderr
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 6 <= step < 60 and step == last_step(workdir)
    metrics = workdir / "checkpoints" / str(step) / "metrics"
    assert not metrics.exists()  # one that would not be there without the signal is not the best
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


@pytest.fixture
def heeded_ctrl_c():
    """Shells let what they start in the background ignore Ctrl-C, and its children inherit that."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("heeded_ctrl_c")
def test_ctrl_c_in_an_evaluation_is_one_line(finished):
    samples = finished / "samples.png"
    samples.unlink(missing_ok=True)
    before = saved_arrays(finished)
    slow = (PICTURES, "--mode=evaluate", "--config.evaluation.num_importance_samples=1000000")
    with start(finished, *slow) as process:
        wait_until(samples.exists, process)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    last_line = stderr.splitlines()[-1]
    assert last_line.endswith("interrupted; what is finished is kept: the same command goes on")
    assert "Traceback" not in stderr
    assert_same_bits(before, saved_arrays(finished))


def test_images_of_any_channels_are_drawn_and_a_run_knows_its_images_by_their_fingerprint(tmp_path):
    rng = np.random.default_rng(0)

    def write_images(name):
        path = tmp_path / name
        np.savez(path, train=rng.integers(0, 2, (60, 6, 4, 2)).astype(np.uint8))
        return f"--config.dataset.path={path}"

    workdir = f"--workdir={tmp_path / 'run'}"
    run = (
        workdir,
        "--config.dataset.name=npz",
        "--config.model.data_shape=(6, 4, 2)",
        "--config.model.num_layers=2",
        "--config.model.latent_shape=(2,)",
        "--config.model.hidden_size=4",
        "--config.training.batch_size=4",
        "--config.training.num_epochs=1",
        "--config.evaluation.num_importance_samples=2",
        "--config.sampling.completion_steps=2",
    )
    launch(*run, PICTURES, write_images("images.npz"))
    assert (tmp_path / "run" / "reconstructions.png").exists()

    others = write_images("others.npz")
    (tmp_path / "images.npz").rename(tmp_path / "moved.npz")
    moved = launch(*run, f"--config.dataset.path={tmp_path / 'moved.npz'}")
    assert "is complete" in moved.stdout
    recorded = (tmp_path / "run" / "config.json").read_bytes()
    assert "are not those that" in launch(*run, others, check=False).stderr
    assert (tmp_path / "run" / "config.json").read_bytes() == recorded
    # The number of devices need not divide the batch any more.
    no_images = "--config.sampling.num_images=0"
    evaluated = launch(workdir, others, "--mode=evaluate", no_images, config=None, devices=3)
    assert "note: the images of 'npz' are not those that" in evaluated.stderr
    launch(workdir, "--mode=sample", PICTURES, config=None)  # needs no images


def test_a_run_with_an_extension_is_evaluated_by_its_workdir_alone(tmp_path, monkeypatch):
    workdir = f"--workdir={tmp_path}"
    file = "examples/bijector.py"
    short = ("--config.training.num_steps=2", "--config.evaluation.num_examples=30")
    launch(workdir, *TINY, *short, config=file)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"kl_per_layer.png", "learning_curves.png"}  # num_images=0

    evaluated = launch(workdir, "--mode=evaluate", config=None)

    assert evaluated.stdout.startswith("test: -log p(x) ")
    note = f"note: importing {ROOT / file}, whose parts {workdir} uses\n"
    assert evaluated.stderr.startswith(note) and evaluated.stderr.count("note:") == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert "--mode=evaluate" in results["evaluation_command"]
    monkeypatch.delitem(BIJECTORS, "lower_upper", raising=False)
    with pytest.raises(sere_jax.ConfigError, match="bijector='lower_upper' is not one of"):
        trained.load(tmp_path)  # the library runs no code that a folder names
    recorded = {"config": f"{tmp_path}/moved.py", "sha256": ""}
    (tmp_path / "extension.json").write_text(json.dumps(recorded))
    moved = launch(workdir, "--mode=sample", config=None, check=False)
    assert moved.returncode == 2
    assert moved.stderr.startswith(f"error: {workdir} uses parts of {tmp_path}/moved.py, which is")
    assert moved.stderr.count("\n") == 1
    launch(workdir, "--mode=report", config=None)  # needs no model


def test_help_names_the_modes_and_the_configurations():
    shown = launch("--help").stdout
    assert "train|evaluate|sample|report|export" in shown
    for file in (ROOT / "configs").glob("[!_]*.py"):
        assert f"  configs/{file.name}\n" in shown
    assert "Quickstart: a small SeRe-VAE on scikit-learn's 8x8 handwritten digits" in shown
    assert str(ROOT) not in shown
    assert "--[no]distributed" in launch("--helpfull", config=None).stdout
