"""What is saved comes back to the bit; the latest few and the best stay; damage is survived."""

import dataclasses
import errno
import resource
import shutil
import time

import numpy as np
import pytest

from experiments.run_folder.checkpoints import Checkpoints
from experiments.system.errors import UserError
from experiments.training.state import TrainState


def state_at(step, size=3):
    params = {"w": np.random.default_rng(step).standard_normal(size).astype(np.float32)}
    return TrainState(
        step=np.asarray(step, np.int32),
        key=np.array([1, 2], np.uint32),
        params=params,
        ema_params={"w": params["w"] / 3},
        opt_state=({"m": params["w"] * 2}, ()),
        skipped_steps=np.asarray(0, np.int32),
        consecutive_skips=np.asarray(0, np.int32),
    )


def save_all(workdir, elbos, keep=2, size=3):
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step, elbo in elbos.items():
            checkpoints.save(state_at(step, size), {"train_seconds": float(step)}, elbo)
            checkpoints.wait()


def assert_is_state_at(step, restored, size=3):
    state, progress = restored
    expected = state_at(step, size)
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


PATTERNS = ["lr[1e-3]", "[", "]", "a*b", "**", "a?b", "{a,b}", "!a", "#a?b%20"]
OTHERS = ["~", "$HOME", "-x", "a b ", "'q\"", "ünï ☃", "new\nline", "a:b", "file:", "gs"]


@pytest.mark.parametrize("name", [*PATTERNS, *OTHERS])
def test_a_workdir_may_be_called_anything(name, tmp_path):
    workdir = tmp_path / name / name
    save_all(workdir, {1: -3.0, 2: -2.0, 3: -5.0, 4: -4.0})
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([2, 3, 4], 2)
        for step in (2, 4):
            assert_is_state_at(step, checkpoints.restore(state_at(0), step))
    with Checkpoints(workdir) as checkpoints:
        assert_is_state_at(4, checkpoints.restore_latest(state_at(0)))


@pytest.mark.parametrize("read_only", [False, True])
def test_a_name_that_tensorstore_takes_for_another_is_refused(read_only, tmp_path):
    with pytest.raises(UserError, match="has a backslash"):
        Checkpoints(tmp_path / "a\\b", read_only=read_only)
    assert not list(tmp_path.iterdir())


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


DAMAGE = {
    "zero bytes": lambda content: b"",
    "half of it": lambda content: content[: len(content) // 2],
    "a flipped bit": lambda content: flip_a_bit(content, len(content) // 2),
    "another flipped bit": lambda content: flip_a_bit(content, len(content) // 3),
}


def flip_a_bit(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two_checkpoints")
    save_all(workdir, {1: -3.0, 2: -2.0}, size=2000)
    return workdir


# tensorstore reports each array that it was reading when the first error, which is raised, came.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [*DAMAGE, "missing"])
@pytest.mark.parametrize("part", ["arrays", "state/_METADATA", "progress", "metrics"])
def test_no_damage_goes_unnoticed(part, damage, two_checkpoints, tmp_path, capsys):
    """The one before is taken, or it was of no consequence and the state is the same to the bit."""
    workdir = tmp_path / "workdir"
    shutil.copytree(two_checkpoints, workdir)
    checkpoint = workdir / "checkpoints" / "2"
    largest = max(checkpoint.rglob("ocdbt*/d/*"), key=lambda path: path.stat().st_size)
    path = {
        "arrays": largest,
        "progress": checkpoint / "progress" / "metadata",
        "metrics": checkpoint / "metrics" / "metrics",
    }.get(part, checkpoint / part)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    damaged = {name.relative_to(checkpoint) for name in checkpoint.rglob("*")}
    with Checkpoints(workdir) as checkpoints:
        assert_is_state_at(1, checkpoints.restore_latest(state_at(0, 2000)), size=2000)
        assert checkpoints.steps() == [1] and checkpoints.best_step() == 1
    aside = workdir / "damaged-2"
    assert {name.relative_to(aside) for name in aside.rglob("*")} == damaged
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("warning: checkpoint") and line.endswith(f"set aside as {aside}")


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path):
    save_all(tmp_path, {1: -3.0, 2: -2.0})
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "7")
    with Checkpoints(tmp_path) as checkpoints:
        assert_is_state_at(1, checkpoints.restore_latest(state_at(0)))
    assert (tmp_path / "damaged-7").is_dir()


def test_a_checkpoint_that_is_damaged_twice_is_set_aside_twice(tmp_path):
    for _ in range(2):
        save_all(tmp_path, {1: -3.0, 2: -2.0})
        shutil.rmtree(tmp_path / "checkpoints" / "2" / "state")
        with Checkpoints(tmp_path) as checkpoints:
            assert_is_state_at(1, checkpoints.restore_latest(state_at(0)))
    assert {path.name for path in tmp_path.glob("damaged-*/*")} >= {"progress", "metrics"}
    assert sorted(path.name for path in tmp_path.glob("damaged-*")) == ["damaged-2", "damaged-2-2"]


def test_a_checkpoint_that_is_half_deleted_does_not_matter(tmp_path):
    save_all(tmp_path, {1: -3.0, 2: -2.0, 3: -1.0})
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "state")
    with Checkpoints(tmp_path) as checkpoints:
        assert_is_state_at(3, checkpoints.restore_latest(state_at(0)))
        checkpoints.save(state_at(4), {"train_seconds": 4.0}, -0.5)
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "denied"),
        ValueError("UNKNOWN: [os_error_code='24'] open"),
        OSError(errno.ESTALE, "stale"),
        MemoryError(),
    ],
)
def test_what_the_system_does_not_let_be_read_is_not_taken_for_damaged(
    error, tmp_path, monkeypatch
):
    save_all(tmp_path, {1: -3.0, 2: -2.0})

    def refuse(*args, **kwargs):
        raise error

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", refuse)
        with pytest.raises(
            OSError, match="Permission denied|Too many open files|[Ss]tale|Cannot allocate"
        ):
            checkpoints.restore_latest(state_at(0))
        assert checkpoints.steps() == [1, 2]
    assert not list(tmp_path.glob("damaged-*"))


def test_where_all_checkpoints_were_set_aside_nothing_starts_over(tmp_path):
    save_all(tmp_path, {1: -3.0})
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text("")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"but those that were set aside as damaged \(damaged-1\)"),
    ):
        checkpoints.restore_latest(state_at(0))


def test_reading_damaged_metrics_is_refused_and_nothing_is_moved(tmp_path):
    save_all(tmp_path, {1: -3.0})
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text("{")
    with pytest.raises(UserError, match="checkpoints/1 is damaged"):
        Checkpoints(tmp_path, read_only=True)
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_a_validation_elbo_that_is_not_finite_is_never_the_best(tmp_path):
    save_all(tmp_path, {1: float("nan"), 2: -3.0, 3: float("inf")})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.best_step() == 2


def test_what_a_kill_left_of_a_checkpoint_is_removed(tmp_path):
    unfinished = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp" / "state"
    unfinished.mkdir(parents=True)
    with Checkpoints(tmp_path):
        assert not unfinished.parent.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size_of_files", [0, 20_000])
def test_a_save_that_fails_in_the_background_is_raised_soon(size_of_files, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(OSError, match="File too large"),
            Checkpoints(tmp_path) as checkpoints,
        ):
            checkpoints.save(state_at(1, 50_000), {"train_seconds": 1.0})
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (size_of_files, hard))
            checkpoints.save(state_at(2, 50_000), {"train_seconds": 2.0})
            for _ in range(10_000):
                checkpoints.raise_save_errors()
                time.sleep(0.01)
            pytest.fail("the save that failed is not noticed")
    finally:  # after closing: a save may go on where it is not the arrays that failed
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(tmp_path) as checkpoints:
        assert_is_state_at(1, checkpoints.restore_latest(state_at(0, 50_000)), size=50_000)
        checkpoints.save(state_at(2, 50_000), {"train_seconds": 2.0})
        checkpoints.wait()
        assert_is_state_at(2, checkpoints.restore_latest(state_at(0, 50_000)), size=50_000)


def test_saving_into_a_deleted_workdir_fails_and_does_not_create_it(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(FileNotFoundError, match="deleted during the run"):
            checkpoints.save(state_at(1), {"train_seconds": 1.0})
        assert not (tmp_path / "run").exists()


def test_checkpoints_of_another_model_are_refused_and_left_alone(tmp_path):
    save_all(tmp_path, {1: -3.0, 2: -2.0})
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\].*--workdir"),
    ):
        checkpoints.restore_latest(state_at(0, size=7))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
    ("saved", "expected", "difference"),
    [("w", "v", "it lacks v"), ("w", "vw", "it lacks v"), ("vw", "w", "it has v besides")],
)
def test_parameters_of_other_names_are_named(tmp_path, saved, expected, difference):
    def with_parameters(names):
        params = {name: np.ones(3, np.float32) for name in names}
        return dataclasses.replace(state_at(1), params=params)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(with_parameters(saved), {"train_seconds": 1.0})
    message = f"belongs to another model: {difference}; choose another --workdir, or the version"
    for read_only in (True, False):
        with (
            Checkpoints(tmp_path, read_only=read_only) as checkpoints,
            pytest.raises(UserError, match=message),
        ):
            checkpoints.restore(with_parameters(expected), 1)


def test_reading_where_there_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="train first"):
        Checkpoints(tmp_path, read_only=True)
