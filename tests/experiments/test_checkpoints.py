"""What is saved comes back to the bit; the latest few and the best stay; damage is survived."""

import shutil

import numpy as np
import pytest

from experiments.checkpoints import Checkpoints
from experiments.errors import UserError
from experiments.training import TrainState


def state_at(step, size=3):
    params = {"w": np.arange(size, dtype=np.float32) + step}
    return TrainState(
        step=np.asarray(step, np.int32),
        key=np.array([1, 2], np.uint32),
        params=params,
        ema_params={"w": params["w"] / 3},
        opt_state=({"m": params["w"] * 2}, ()),
        skipped_steps=np.asarray(0, np.int32),
        consecutive_skips=np.asarray(0, np.int32),
    )


def save_all(workdir, elbos, keep=2):
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step, elbo in elbos.items():
            checkpoints.save(state_at(step), {"train_seconds": float(step)}, elbo)
            checkpoints.wait()


def assert_is_state_at(step, restored):
    state, progress = restored
    expected = state_at(step)
    assert int(state.step) == step
    np.testing.assert_array_equal(state.key, expected.key)
    np.testing.assert_array_equal(state.params["w"], expected.params["w"])
    np.testing.assert_array_equal(state.ema_params["w"], expected.ema_params["w"])
    np.testing.assert_array_equal(state.opt_state[0]["m"], expected.opt_state[0]["m"])
    assert progress == {"train_seconds": float(step)}


def test_the_latest_few_and_the_best_stay(tmp_path):
    save_all(tmp_path, {1: -9.0, 2: -1.0, 3: -5.0, 4: None, 5: -4.0})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best_step() == 2
        assert checkpoints.validation_elbo(4) is None
        assert_is_state_at(2, checkpoints.restore(state_at(0), 2))
        assert_is_state_at(5, checkpoints.restore_latest(state_at(0)))


def test_the_best_is_remembered_across_relaunches(tmp_path):
    save_all(tmp_path, {1: -1.0})
    save_all(tmp_path, {2: -3.0, 3: -2.0, 4: -2.5})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 3, 4]
        assert checkpoints.best_step() == 1


def test_a_new_folder_has_nothing_to_resume(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state_at(0)) is None
        assert checkpoints.best_step() is None


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path):
    save_all(tmp_path, {1: -3.0, 2: -2.0})
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "state")
    with Checkpoints(tmp_path) as checkpoints:
        assert_is_state_at(1, checkpoints.restore_latest(state_at(0)))
        assert (tmp_path / "damaged-2").is_dir()
        checkpoints.save(state_at(2), {"train_seconds": 2.0})
        checkpoints.wait()
        assert_is_state_at(2, checkpoints.restore_latest(state_at(0)))


def test_checkpoints_of_another_model_are_refused_and_left_alone(tmp_path):
    save_all(tmp_path, {1: -3.0, 2: -2.0})
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\].*--workdir"),
    ):
        checkpoints.restore_latest(state_at(0, size=7))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2]


def test_reading_where_there_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="train first"):
        Checkpoints(tmp_path, read_only=True)
