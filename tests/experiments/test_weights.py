"""Weights kept without their checkpoints."""

import functools
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from command_line import ROOT, launch, train
from flax import traverse_util

import sere_jax
from experiments import trained
from experiments.run_folder import configuration, exported_weights
from experiments.system.errors import UserError
from experiments.training import trained_model
from sere_jax.prior import started_from_gaussian

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

KEPT = sorted((ROOT / "results").glob(f"**/{exported_weights.OLD_FILE}"))


@pytest.fixture(scope="module")
def exported(uninterrupted, tmp_path_factory):
    """A run, and a folder with nothing but what its weights need."""
    workdir, kept = (tmp_path_factory.mktemp("runs") / name for name in ("run", "kept"))
    shutil.copytree(uninterrupted, workdir)
    finished = launch(f"--workdir={workdir}", "--mode=export", "--licence=cc0-1.0", config=None)
    assert f"float16, in {workdir / 'model.safetensors'}" in finished.stdout
    kept.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(workdir / name, kept)
    return workdir, kept


def test_the_model_card_says_where_the_weights_are_from_and_what_rounding_cost(exported, tmp_path):
    workdir, _ = exported
    results, card = results_of(workdir), (workdir / "README.md").read_text()
    figures = f"{results['nll']:.2f} ± {results['nll_stderr']:.2f} nats"
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE))
    assert rows["data"] == "digits" and figures in rows["-log p(x)"]
    assert rows["trained by"] == results["command"] and rows["commit"] == results["git_commit"]
    assert rows["licence"] == "cc0-1.0" and 'license: "cc0-1.0"' in card
    assert rows["weights"] == "float16" and rows["updates"] == str(results["step"])
    assert 'sere_jax.load_pretrained("' in card
    # As an independent computation has it, on more images of the model.
    model, params = trained.load(workdir)
    _, half = sere_jax.load_pretrained(workdir)
    x = sere_jax.sample(model, params, jax.random.key(5), 300)
    both = [
        np.asarray(sere_jax.log_likelihood(model, p, x, jax.random.key(6), 50))
        for p in (params, half)
    ]
    expected = (both[0] - both[1]).mean()
    found, error = map(float, re.findall(r"(-?[\d.]+) ± ([\d.]+) nats", rows["rounding"])[0])
    assert abs(found - expected) < 5 * error + 2e-3


def test_the_type_of_the_weights_is_a_flag(exported, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(exported[0], workdir)
    expected = trained.load(workdir)[1]
    finished = launch(f"--workdir={workdir}", "--mode=export", "--dtype=float32", config=None)
    assert "float32, in" in finished.stdout and "rounding" not in finished.stdout
    card = (workdir / "README.md").read_text()
    assert "| rounding | none" in card and "licen" not in card
    jax.tree.map(np.testing.assert_array_equal, expected, sere_jax.load_pretrained(workdir)[1])
    recorded = results_of(workdir)
    (workdir / "results.json").write_text(json.dumps(recorded | {"step": recorded["step"] - 1}))
    launch(f"--workdir={workdir}", "--mode=export", "--dtype=float32", config=None)
    card = (workdir / "README.md").read_text()
    assert "these weights were not evaluated" in card and f"{recorded['nll']:.2f}" not in card
    (workdir / "README.md").write_text("mine")
    finished = launch(f"--workdir={workdir}", "--mode=export", "--dtype=bfloat16", config=None)
    assert "bfloat16, in" in finished.stdout and "rounding costs" in finished.stdout
    assert (workdir / "README.md").read_text() == "mine"
    refused = launch(
        f"--workdir={workdir}", "--mode=sample", "--dtype=float32", config=None, check=False
    )
    assert refused.returncode == 2 and "--dtype=float32 means nothing" in refused.stderr


def write_as_earlier_versions(path, weights):
    """A compressed `weights.npz` beside `path`, of parameters and what is known of them."""
    params, about = weights
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.float16(values) for name, values in flat.items()}
    old = path.with_name("weights.npz")
    np.savez_compressed(old, about=np.array(json.dumps(about)), **arrays)
    return old


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_exported_weights_are_the_averages_of_the_best_checkpoint_rounded(exported):
    (_, expected), (model, found) = map(trained.load, exported)
    _, by_the_library = sere_jax.load_pretrained(exported[1])
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for one, other, same in zip(
        *map(jax.tree.leaves, (expected, found, by_the_library)), strict=True
    ):
        assert other.dtype == np.float32
        np.testing.assert_array_equal(np.float32(np.float16(one)), other)
        np.testing.assert_array_equal(same, other)
    assert sere_jax.sample(model, found, jax.random.key(0), 2).shape == (2, 8, 8, 1)


def test_a_folder_of_exported_weights_is_evaluated_and_sampled_like_the_run(exported):
    workdir, kept = exported
    launch(f"--workdir={kept}", "--mode=evaluate", config=None)
    expected, found = map(results_of, exported)
    for name in ("nll", "elbo"):
        assert found[name] == pytest.approx(expected[name], abs=0.01)
    same = (
        "step",
        "epoch",
        "num_params",
        "train_seconds",
        "validation_elbo",
        "command",
        "git_commit",
        "computer",
    )
    assert [found[name] for name in same] == [expected[name] for name in same]
    launch(f"--workdir={kept}", "--mode=sample", "--config.sampling.num_images=3", config=None)
    assert np.load(kept / "samples.npz")["images"].shape == (3, 8, 8, 1)
    refused = launch(f"--workdir={kept}", "--config.training.num_steps=60", check=False)
    assert refused.returncode == 2


def test_an_evaluation_says_where_exported_weights_are_older(exported, tmp_path):
    workdir = shutil.copytree(exported[0], tmp_path / "run")
    step = results_of(workdir)["step"]
    evaluate = (f"--workdir={workdir}", "--mode=evaluate")
    assert "has the weights of step" not in launch(*evaluate, config=None).stderr
    _, params, about = trained_model.load_model(configuration.get_config(str(workdir)), workdir)
    exported_weights.write(workdir, params, about | {"step": step - 1})
    stderr = launch(*evaluate, config=None).stderr
    assert (
        f"has the weights of step {step - 1}, those evaluated are of step {step}; --mode" in stderr
    )


def test_a_run_starts_from_exported_weights_of_the_same_model(exported, tmp_path):
    _, kept = exported
    start = f"--config.training.initial_weights={kept}"
    # One step, too small to be seen.
    step = ("--config.training.num_steps=1", "--config.training.learning_rate=1e-30")
    train(tmp_path / "finer", start, *step)
    (_, expected), (_, found) = map(trained.load, (kept, tmp_path / "finer"))
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-20)
    jax.tree.map(same, found, expected)

    other_model = ("--config.model.prior=spline", "--config.model.rematerialize=True")
    train(tmp_path / "splines", start, *step, *other_model)
    _, found = trained.load(tmp_path / "splines")
    jax.tree.map(same, *(tree["hierarchy"]["layers"]["data_layer"] for tree in (found, expected)))
    jax.tree.map(same, started_from_gaussian(found, expected, 8), found)

    other = train(tmp_path / "other", start, "--config.model.hidden_size=9", check=False)
    assert other.returncode == 2
    assert "are those of another model (hidden_size: 8 -> 9); choose weights" in other.stderr
    missing = train(tmp_path / "other", f"{start}x", check=False)
    assert missing.returncode == 2
    assert f"initial_weights='{kept}x': there is no run in" in missing.stderr
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_read_or_written_is_refused(exported, tmp_path):
    _, kept = exported
    broken = tmp_path / "broken"
    shutil.copytree(kept, broken)
    new = exported_weights.find(broken)
    old = write_as_earlier_versions(new, exported_weights.read(new, trained.load(kept)[1]))
    for path, place in ((new, -100), (old, old.read_bytes().index(b"kernel.npy") + 90)):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[place] ^= 1
        for damaged in (whole[:1000], b"", bytes(flipped)):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=rf"{path.name} is damaged .*export it anew"):
                trained.load(broken)
        path.unlink()
    another = tmp_path / "another"
    shutil.copytree(kept, another)
    foreign = another / "model.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(foreign), foreign)
    with pytest.raises(UserError, match="does not say its step, .* export it anew"):
        trained.load(another)
    config = configuration.get_config(str(another)).to_dict()
    config["model"]["hidden_size"] = 9
    (another / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"another model: .* \(4, 8\) instead of \(4, 9\)"):
        trained.load(another)
    for value in (1e5, np.nan):
        with pytest.raises(UserError, match="params/scale holds .* float16 cannot represent"):
            exported_weights.write(tmp_path, {"params": {"scale": np.float32(value)}}, {})
    assert not exported_weights.find(tmp_path)


def test_weights_that_earlier_versions_exported_are_loaded(exported, tmp_path):
    _, kept = exported
    model, params = trained.load(kept)
    shutil.copy(kept / "config.json", tmp_path)
    about = exported_weights.read(exported_weights.find(kept), params)
    old = write_as_earlier_versions(tmp_path / "any", about)
    jax.tree.map(np.testing.assert_array_equal, trained.load(tmp_path)[1], params)
    assert exported_weights.read(old, params)[1] == about[1]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_the_weights_in_the_repository_can_be_loaded_and_are_small(path: pathlib.Path):
    assert path.stat().st_size < 20e6
    model, params = trained.load(path.parent)
    _, about = exported_weights.read(path, params)
    assert about["step"] == results_of(path.parent)["step"]
    assert sere_jax.sample(model, params, jax.random.key(0), 1).shape == (1, 28, 28, 1)
