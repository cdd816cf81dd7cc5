"""Training a finished run for longer: `--extend`."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from command_line import (
    assert_same_bits,
    last_step,
    logged,
    saved_arrays,
    start,
    train,
    wait_until,
    without_speed,
)

from configs import digits
from experiments.optimization import schedules
from experiments.run_folder import same_run
from experiments.run_folder.continuations import read_continuations, record_continuation
from experiments.settings.checks import as_json
from experiments.system.errors import UserError
from experiments.training.continuation import continued
from experiments.training.experiment import create_experiment

_HALF = ("--config.training.num_steps=30", "--config.training.schedule_horizon=60 steps")
_WHOLE = ("--config.training.schedule_horizon=60 steps", "--extend")


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> pathlib.Path:
    """A finished run of 30 steps whose schedules are those of 60; not to be changed."""
    workdir = tmp_path_factory.mktemp("half") / "run"
    train(workdir, *_HALF)
    return workdir


@pytest.mark.slow
def test_two_halves_equal_the_whole_to_the_bit_and_say_so(half, uninterrupted, tmp_path):
    workdir = shutil.copytree(half, tmp_path / "run")
    finished = train(workdir, *_WHOLE)
    assert "from step 30 the learning rate holds" in finished.stderr
    assert_same_bits(saved_arrays(workdir), saved_arrays(uninterrupted))
    records = logged(workdir)
    notes = [record for record in records if record["split"] == "continuation"]
    assert without_speed(r for r in records if r not in notes) == without_speed(
        logged(uninterrupted)
    )
    (note,) = notes
    assert (note["step"], note["from_steps"], note["to_steps"]) == (30, 30, 60)
    assert "--extend" in note["command"]
    results = json.loads((workdir / "results.json").read_text())
    expected = json.loads((uninterrupted / "results.json").read_text())
    for name in ("step", "nll", "elbo", "validation_elbo"):  # the best of both halves
        assert results[name] == expected[name]
    assert results["continuations"] == read_continuations(workdir)
    assert json.loads((workdir / "config.json").read_text())["training"]["num_steps"] == 60
    (entry,) = json.loads((workdir / "continuations.json").read_text())
    assert entry["replaced_config"] == json.loads((half / "config.json").read_text())

    again = train(workdir, *_WHOLE)  # a relaunch finds everything done
    assert "is complete" in again.stdout and logged(workdir) == records


@pytest.mark.slow
def test_a_killed_extension_goes_on_to_the_same_bits(half, uninterrupted, tmp_path):
    workdir = shutil.copytree(half, tmp_path / "run")
    with start(workdir, *_WHOLE) as process:
        wait_until(lambda: last_step(workdir) >= 40, process)
        process.kill()
    train(workdir, *_WHOLE)
    assert_same_bits(saved_arrays(workdir), saved_arrays(uninterrupted))
    splits = [record["split"] for record in logged(workdir)]
    assert splits.count("continuation") == 1


def _config(**training):
    config = digits.get_config()
    config.training.update(training)
    return config


def _recorded(workdir, config):
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(as_json(config)))


def test_an_extension_counts_once_the_configuration_is_replaced(tmp_path):
    _recorded(tmp_path, _config(num_epochs=20))
    longer = _config(num_epochs=30)
    for _ in range(2):  # the first process was killed between the two files
        record_continuation(tmp_path, longer, 7, "command")
        assert read_continuations(tmp_path) == []
    _recorded(tmp_path, longer)
    (entry,) = read_continuations(tmp_path)
    assert (entry["from_steps"], entry["to_steps"], entry["from_epochs"]) == (140, 210, 20)
    record_continuation(tmp_path, longer, 7, "a relaunch")
    assert read_continuations(tmp_path) == [entry]
    record_continuation(tmp_path, _config(num_epochs=50), 7, "again")
    _recorded(tmp_path, _config(num_epochs=50))
    assert [e["to_epochs"] for e in read_continuations(tmp_path)] == [30, 50]


@pytest.mark.parametrize("training", [{"num_epochs": 10}, {"schedule_when_extended": "restart"}])
def test_an_extension_that_adds_no_step_is_refused(training, tmp_path):
    _recorded(tmp_path, _config(num_epochs=20))
    with pytest.raises(UserError, match="has 140 steps"):
        record_continuation(tmp_path, _config(**{"num_epochs": 20, **training}), 7, "command")
    assert not (tmp_path / "continuations.json").exists()


def test_an_extension_at_a_learning_rate_of_zero_is_refused(tmp_path):
    longer = {"num_epochs": 30, "final_learning_rate_factor": 0.0}
    _recorded(tmp_path, _config(**longer | {"num_epochs": 20}))
    with pytest.raises(UserError, match="choose 'restart'"):
        record_continuation(tmp_path, _config(**longer), 7, "command")
    record_continuation(tmp_path, _config(**longer, schedule_when_extended="restart"), 7, "command")


def test_extending_changes_the_length_and_nothing_else(tmp_path):
    _recorded(tmp_path, _config(num_epochs=20))
    longer = _config(num_epochs=30)
    with pytest.raises(UserError, match="add --extend to train it for longer"):
        same_run.check_can_train(tmp_path, longer)
    with pytest.raises(UserError, match=r"20 -> 10\); choose another --workdir"):
        same_run.check_can_train(tmp_path, _config(num_epochs=10))
    same_run.check_can_train(tmp_path, longer, extend=True)
    longer.training.learning_rate *= 2
    with pytest.raises(UserError, match=r"training\.learning_rate.*--extend changes its length"):
        same_run.check_can_train(tmp_path, longer, extend=True)
    with pytest.raises(UserError, match="no run in .* to train for longer"):
        same_run.check_can_train(tmp_path / "other", longer, extend=True)


def test_a_relaunch_may_choose_other_dispatches(tmp_path):
    """The weights keep their bits; only the log has its records at other steps."""
    _recorded(tmp_path, _config())
    same_run.check_can_train(tmp_path, _config(steps_per_dispatch=7))
    with pytest.raises(UserError, match=r"training\.batch_size"):
        same_run.check_can_train(tmp_path, _config(steps_per_dispatch=7, batch_size=7))


@pytest.mark.parametrize("schedule", ["hold", "restart"])
def test_schedules_of_an_extended_training(schedule):
    config = _config(num_steps=300, warmup="10 steps", learning_rate=2e-3, kl_warmup="10%")
    experiment = create_experiment(config)
    entry = {"from_steps": 100, "to_steps": 300, "schedule": schedule}
    extended = continued(experiment, [entry])
    assert extended.total_steps == 300
    assert extended.duration_in_steps("training", "kl_warmup") == 10  # 10% of the first length
    step = np.arange(300)

    def curve(length, at):  # warm-up of 10 steps, then a cosine to 1%
        at = np.minimum(at, length)
        fall = (1 + np.cos(np.pi * (at - 10) / (length - 10))) / 2
        return 2e-3 * np.where(at < 10, (at + 1) / 10, 0.01 + 0.99 * fall)

    added = np.full(300, 2e-5) if schedule == "hold" else curve(200, step - 100)
    expected = np.where(step < 100, curve(100, step), added)
    actual = [float(extended.learning_rate(s)) for s in step]
    np.testing.assert_allclose(actual, expected, rtol=1e-3)
    np.testing.assert_allclose(extended.kl_weight(np.array([10, 100, 299])), 1.0)


def test_a_horizon_fixes_the_schedules_whatever_the_length():
    ours = create_experiment(_config(num_steps=100, schedule_horizon="300 steps"))
    theirs = create_experiment(_config(num_steps=300))
    assert (ours.total_steps, ours.horizon_steps) == (100, 300)
    for step in range(0, 300, 7):
        assert ours.learning_rate(step) == theirs.learning_rate(step)
        assert ours.kl_weight(step) == theirs.kl_weight(step)
    fields = ("evaluate_every", "kl_warmup", "importance_weighted_from")
    for field in fields:
        assert ours.duration_in_steps("training", field) == theirs.duration_in_steps(
            "training", field
        )


def test_one_schedule_follows_another():
    rate = schedules.followed_by(lambda step: -step, 5, lambda step: 10 + step)
    assert [int(rate(step)) for step in (0, 4, 5, 7)] == [0, -4, 10, 12]
