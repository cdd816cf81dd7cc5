"""Trainings that stop when the validation ELBO no longer rises: `config.training.patience`."""

import json
import shutil

import numpy as np
import pytest
from command_line import (
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

from experiments.training.early_stopping import Patience

# So fast that the ELBO of the last weights falls again and again.
_UNSTEADY = (
    "--config.training.learning_rate=0.1",
    "--config.training.learning_rate_schedule=constant",
    "--config.training.warmup=0 steps",
    "--config.training.ema_decay=0.0",
    "--config.training.evaluate_every=2 steps",
    "--config.evaluation.test_elbo_every=",
)
_PATIENT = (*_UNSTEADY, "--config.training.patience=6 steps")


def expected_stop(evaluations, patience):
    """The step at which a run with this curve stops, and the best one, by looking at all pairs."""
    for index, (step, _) in enumerate(evaluations):
        seen = [(s, -np.inf if elbo is None else elbo) for s, elbo in evaluations[: index + 1]]
        top = max(elbo for _, elbo in seen)
        best = min(s for s, elbo in seen if elbo == top) if top > -np.inf else 0
        if step - best >= patience:
            return step, best
    return None


@pytest.mark.parametrize("patience", [1, 3, 4, 9, 40])
@pytest.mark.parametrize("seed", range(4))
def test_patience_is_a_count_over_the_curve(patience, seed):
    rng = np.random.default_rng(seed)
    curve = np.log(np.arange(1, 60)) - 0.03 * np.arange(1, 60) + 0.1 * rng.normal(size=59)
    elbos = [None if rng.random() < 0.1 else round(float(elbo), 1) for elbo in curve]  # with ties
    evaluations = [(3 * index, elbo) for index, elbo in enumerate(elbos, 1)]
    stop = None
    running = Patience(patience, ())
    for index, evaluation in enumerate(evaluations):
        resumed = Patience(patience, evaluations[:index])
        for each in (running, resumed):
            each.see(*evaluation)
        assert resumed.is_over == running.is_over
        if running.is_over and stop is None:
            stop = running.last_step, running.best_step
    assert stop == expected_stop(evaluations, patience)
    assert not Patience(None, evaluations).is_over


def validation_curve(workdir):
    return [(r["step"], r["elbo"]) for r in logged(workdir) if r["split"] == "validation"]


@pytest.mark.slow
def test_a_run_stops_where_the_curve_says_and_a_killed_or_continued_one_is_the_same(tmp_path):
    whole, stopped, killed = (tmp_path / name for name in ("whole", "stopped", "killed"))
    finished = train(whole, *_UNSTEADY, "--config.training.keep_checkpoints=60")
    assert "stopped early" not in finished.stderr
    assert "stopped_early" not in json.loads((whole / "results.json").read_text())
    stop, best = expected_stop(validation_curve(whole), 6)
    assert 6 < stop < 60

    finished = train(stopped, *_PATIENT)
    assert f"stopped early at step {stop}" in finished.stderr
    assert f"has not risen since step {best}" in finished.stderr
    assert without_speed(logged(stopped)) == without_speed(
        record for record in logged(whole) if record["step"] <= stop
    )
    results = json.loads((stopped / "results.json").read_text())
    expected = {"step": stop, "best_step": best, "patience": "6 steps"}
    assert results["stopped_early"] == expected
    assert results["step"] == best  # the checkpoint that is evaluated
    assert "Stopped early" in (stopped / "report.html").read_text()
    assert_same_bits(saved_arrays(stopped, best), saved_arrays(whole, best))

    with start(killed, *_PATIENT) as process:
        wait_until(lambda: last_step(killed) >= stop - 2, process)
        process.kill()
    train(killed, *_PATIENT)
    assert without_speed(logged(killed)) == without_speed(logged(stopped))
    assert_same_bits(saved_arrays(killed, stop), saved_arrays(stopped, stop))
    assert json.loads((killed / "results.json").read_text())["stopped_early"] == expected

    again = train(stopped, *_PATIENT)  # a relaunch finds everything done
    assert "is complete" in again.stdout and f"stopped early at step {stop}" in again.stderr
    extended = shutil.copytree(stopped, tmp_path / "extended")
    longer = train(extended, *_PATIENT, "--config.training.num_steps=80", "--extend")
    assert "extended from" in longer.stderr and f"stopped early at step {stop}" in longer.stderr

    train(stopped, *_UNSTEADY)  # without patience it goes on
    assert_same_bits(saved_arrays(stopped), saved_arrays(whole))
    assert without_speed(logged(stopped)) == without_speed(logged(whole))
    results = json.loads((stopped / "results.json").read_text())
    assert "stopped_early" not in results
    evaluated = launch(f"--workdir={stopped}", "--mode=evaluate", config=None)
    assert "test:" in evaluated.stdout
