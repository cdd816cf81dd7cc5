"""Whatever happens to a run, nothing that was saved is lost, and the end is the same to the bit.

docs/faults.md lists the faults.
"""

import collections
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import (
    PICTURES,
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

from configs import digits
from experiments.command_line import modes
from experiments.run_folder.folder import RunFolder
from experiments.system.errors import UserError

pytestmark = pytest.mark.slow

NUM_KILLS = 20
SEED = 0
DRAWN = ("samples.png", "reconstructions.png", "kl_per_layer.png")
needs_prlimit = pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="limits another process, which only Linux can"
)


# ------------------------------------------------------------------------ what is in a workdir


def complete_checkpoints(workdir):
    """Steps under a final name; orbax gives it to a folder that is complete."""
    directory = workdir / "checkpoints"
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())


def unfinished_checkpoints(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def launches_that_trained(workdir):
    """The step from which each launch went on: each opens a TensorBoard file of that name."""
    return collections.Counter(
        int(path.name.rpartition("_")[2]) for path in (workdir / "tensorboard").glob("events.*")
    )


def figures(workdir):
    results = json.loads((workdir / "results.json").read_text())
    for name in (
        "train_seconds",
        "command",
        "git_commit",
        "computer",
        "evaluation_command",
        "evaluation_git_commit",
        "evaluation_computer",
    ):
        del results[name]
    return results


def assert_ended_as_if_nothing_had_happened(workdir, uninterrupted, pictures=DRAWN):
    assert complete_checkpoints(workdir) == complete_checkpoints(uninterrupted)
    for step in complete_checkpoints(workdir):
        assert_same_bits(saved_arrays(workdir, step), saved_arrays(uninterrupted, step))
    assert without_speed(logged(workdir)) == without_speed(logged(uninterrupted))
    assert figures(workdir) == figures(uninterrupted)
    for name in pictures:
        assert (workdir / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    nll = f"{figures(uninterrupted)['nll']:.2f}"
    assert nll in (workdir / "report.html").read_text()
    left = [path.name for path in (*workdir.glob(".*.tmp"), *unfinished_checkpoints(workdir))]
    assert not left


# ----------------------------------------------------------------------- an unusual environment


def test_neither_names_nor_the_environment_change_a_run(uninterrupted, tmp_path):
    variables = {"HOME": str(tmp_path), "PYTHONIOENCODING": "ascii", "JAX_ENABLE_X64": "1"}
    name = "lr[1e-3]* ünï\n'q\"#?"
    finished = train(f"~/{name}", PICTURES, variables=variables)
    assert finished.stdout.startswith("test: -log p(x) ") and r" \xb1 " in finished.stdout
    assert_ended_as_if_nothing_had_happened(tmp_path / name, uninterrupted)
    launch(f"--workdir=~/{name}", "--mode=export", config=None, variables=variables)
    assert (tmp_path / name / "model.safetensors").exists()


# --------------------------------------------------------------------------------------- SIGKILL


def test_a_run_that_is_killed_twenty_times_ends_as_if_it_had_not_been_killed(
    uninterrupted, tmp_path
):
    workdir = tmp_path / "killed"
    generator = random.Random(SEED)
    moments = [*["anywhere"] * 4, *["start"] * 2, *["training"] * 2, *["checkpoint"] * 8]
    generator.shuffle(moments)
    moments += ["pictures", "importance sampling", "importance sampling", "report"]
    assert len(moments) == NUM_KILLS
    hits, resume_steps = [], set()
    for moment in moments:
        before = complete_checkpoints(workdir)
        trained = launches_that_trained(workdir)
        with start(workdir, PICTURES) as process:
            _wait_for(moment, workdir, process, generator)
        after = complete_checkpoints(workdir)
        phase = _phase(workdir, trained.total())
        hits.append(f"{phase} (aimed at {moment}), checkpoints before {before}, after {after}")
        story = "\n".join(hits)
        assert before[-1:] <= after[-1:], f"a complete checkpoint was lost\n{story}"
        resumed_from = list((launches_that_trained(workdir) - trained).elements())
        assert resumed_from in ([], before[-1:] or [0]), f"resumed from {resumed_from}\n{story}"
        resume_steps.update(resumed_from)

    train(workdir, PICTURES)
    story = "\n".join(hits)
    assert story.count("writing a checkpoint (") >= 5, story
    for phase in ("start-up", "training", "evaluation", "report"):
        assert re.search(f"^{phase}", story, re.MULTILINE), f"no kill hit: {phase}\n{story}"
    assert len(resume_steps) >= 5, f"resumed from {resume_steps} only\n{story}"
    assert_ended_as_if_nothing_had_happened(workdir, uninterrupted)


def _wait_for(moment, workdir, process, generator):
    """Returns at a random time of the part of the launch that is called `moment`."""

    launches = launches_that_trained(workdir)

    def has_opened_the_log():
        return launches_that_trained(workdir) != launches

    def exists(name):
        return lambda: (workdir / name).exists()

    resume_step = max(complete_checkpoints(workdir), default=0)
    target = min(resume_step + 2 * generator.choice([1, 2, 3]), 56)  # of 60 steps
    match moment:
        case "anywhere":
            time.sleep(generator.uniform(0.0, 3.0))
        case "start":
            wait_until(has_opened_the_log, process)
            time.sleep(generator.uniform(0.0, 0.5))
        case "training":
            wait_until(has_opened_the_log, process)
            wait_until(lambda: last_step(workdir) >= target, process)
            time.sleep(generator.uniform(0.0, 0.05))
        case "checkpoint":
            wait_until(has_opened_the_log, process)
            wait_until(lambda: last_step(workdir) >= target, process)
            wait_until(lambda: unfinished_checkpoints(workdir), process)
            time.sleep(generator.uniform(0.0, 0.04))
        case "pictures":
            wait_until(exists("samples.png"), process)
        case "importance sampling":
            wait_until(exists("kl_per_layer.png"), process)
            time.sleep(generator.uniform(0.0, 0.5))
        case "report":
            wait_until(exists("results.json"), process)


def _phase(workdir, num_launches):
    """What the killed launch was doing, from what it left."""
    if (workdir / "results.json").exists():
        return "end" if (workdir / "report.html").exists() else "report"
    if last_step(workdir) == 60 and 60 in complete_checkpoints(workdir):
        return "evaluation"
    if launches_that_trained(workdir).total() == num_launches:
        return "start-up"
    if unfinished := [path.name.partition(".")[0] for path in unfinished_checkpoints(workdir)]:
        return f"writing a checkpoint ({', '.join(unfinished)})"
    return f"training (step {last_step(workdir)})"


def test_a_run_that_is_killed_while_it_streams_ends_as_if_its_images_were_resident(
    uninterrupted, tmp_path
):
    workdir, stream = tmp_path / "streamed", "--config.dataset.placement=stream"
    for step, arguments in ((17, [stream]), (33, []), (41, [stream])):
        with start(workdir, *arguments) as process:
            wait_until(lambda step=step: last_step(workdir) >= step, process)
    finished = train(workdir, stream)
    assert ", streamed from " in finished.stderr
    assert_ended_as_if_nothing_had_happened(workdir, uninterrupted, ["kl_per_layer.png"])


# ------------------------------------------------------------------------------------ a full disk


@needs_prlimit
def test_a_full_disk_stops_the_run_with_one_line_and_loses_nothing(uninterrupted, tmp_path):
    """No file may grow any more, as on a full disk: for arrays, for logs and for figures."""
    workdir = tmp_path / "full"
    for size_of_files, begins in (
        (30_000, lambda: last_step(workdir) >= 6),
        (1, lambda: last_step(workdir) >= 20),
        (1, lambda: (workdir / "samples.png").exists()),
    ):
        with start(workdir, PICTURES) as process:
            wait_until(begins, process)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size_of_files, size_of_files))
            before = complete_checkpoints(workdir)
            stderr = process.communicate(timeout=120)[1]
        assert process.returncode == 2, stderr
        (line,) = error_lines(stderr)
        assert f"--workdir={workdir}" in line
        assert "disk is full" in line and "the same command resumes" in line
        assert before[-1:] <= complete_checkpoints(workdir)[-1:]
        assert not (workdir / "results.json").exists()

    train(workdir, PICTURES)
    assert_ended_as_if_nothing_had_happened(workdir, uninterrupted)


def error_lines(stderr):
    """The lines of an error, all but those of progress bars; a traceback would be among them."""
    lines = [line.rpartition("\r")[2] for line in stderr.splitlines()]
    progress = r"[\w -]+: +\d+%\||data: \d+ images|model: \w+, |devices: \d+ |drawing pictures$"
    other = re.compile(progress)
    return [line for line in lines if line and not other.match(line)]


# ------------------------------------------------------------------ a workdir that has changed


def test_a_workdir_that_is_deleted_during_the_run_is_one_error(tmp_path):
    workdir = tmp_path / "deleted"
    with start(workdir) as process:
        wait_until(lambda: last_step(workdir) >= 4, process)
        workdir.rename(tmp_path / "elsewhere")  # at once, while rmtree would race with the run
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 2, stderr
    (line,) = error_lines(stderr)
    assert f"--workdir={workdir} was deleted or moved during the run" in line
    # Orbax ends what it was writing when the folder went, creating the path anew; no save follows.
    assert len(complete_checkpoints(workdir)) <= 1 and not (workdir / "metrics.jsonl").exists()


def test_damage_of_all_kinds_is_mended_by_a_launch_that_no_second_one_disturbs(
    uninterrupted, tmp_path
):
    workdir = tmp_path / "damaged"
    shutil.copytree(uninterrupted, workdir)
    for path in (workdir / "checkpoints" / "60" / "state").rglob("d/*"):
        flip_a_bit(path)
    (workdir / "damaged-60").mkdir()
    (workdir / "checkpoints" / "60.orbax-checkpoint-tmp").mkdir()
    (workdir / "results.json").write_text('{"nll": ')
    (workdir / ".results.json.1.tmp").write_text("{")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 62, "epo')
    damaged = files_of(workdir / "checkpoints" / "60")

    with start(workdir) as first:
        wait_until(lambda: (workdir / "damaged-60-2").exists(), first)
        first.send_signal(signal.SIGSTOP)  # at work, for as long as the second one takes
        second = train(workdir, check=False)
        first.send_signal(signal.SIGCONT)
        stderr = first.communicate(timeout=120)[1]
        assert first.returncode == 0, stderr

    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert f"--workdir={workdir} is in use by another process" in line
    (line,) = error_lines(stderr)
    assert line.startswith(f"warning: checkpoint {workdir / 'checkpoints' / '60'} ")
    assert line.endswith(f"It is set aside as {workdir / 'damaged-60-2'}")
    assert files_of(workdir / "damaged-60-2") == damaged
    assert_ended_as_if_nothing_had_happened(workdir, uninterrupted)


def files_of(directory):
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def tiny_config(**fields):
    config = digits.get_config()
    config.model.update(num_layers=4, latent_shape=(2,), hidden_size=8)
    config.training.update(num_steps=60, checkpoint_every="2 steps", evaluate_every="10 steps")
    config.training.steps_per_dispatch = 2
    config.evaluation.update(num_importance_samples=3, num_examples=30, test_elbo_every="50%")
    config.sampling.update(num_images=9, completion_steps=2)
    config.update(fields)
    return config


@pytest.mark.parametrize("lost", ["checkpoints", "all steps", "steps of an unfinished run"])
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(lost, uninterrupted, tmp_path):
    workdir = tmp_path / "lost"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints")
    if lost != "checkpoints":
        (workdir / "checkpoints").mkdir()
    if lost == "steps of an unfinished run":
        (workdir / "results.json").unlink()
    before = files_of(workdir)
    with pytest.raises(UserError, match="was trained to step 60 but has no checkpoint any more"):
        modes.train(tiny_config(), workdir, "")
    assert files_of(workdir) == before


def test_checkpoints_of_another_configuration_are_refused_and_left_alone(uninterrupted, tmp_path):
    workdir = tmp_path / "foreign"
    shutil.copytree(uninterrupted / "checkpoints", workdir / "checkpoints")
    config = tiny_config(seed=1)
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json"):
        RunFolder(workdir).open_for_training(config, None, "images")
    (workdir / "config.json").write_text(config.to_json())
    before = files_of(workdir / "checkpoints")
    with pytest.raises(UserError, match=r"checkpoints/60 is of a run with .*\(seed: 0 -> 1\)"):
        modes.train(config, workdir, "")
    assert files_of(workdir / "checkpoints") == before


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77
shift
exec "$@"
"""


def test_a_read_only_workdir_is_one_error(uninterrupted):
    """A read-only mount of its own name space, as root may write whatever the permissions."""
    arguments = [sys.executable, "-m", "experiments.main", "--config=configs/digits.py", *TINY]
    finished = subprocess.run(
        ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh", uninterrupted, *arguments]
        + [f"--workdir={uninterrupted}"],
        capture_output=True,
        text=True,
    )
    if finished.returncode in (77, 127) or "unshare" in finished.stderr:
        pytest.skip("this system does not let its users mount")
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert f"--workdir={uninterrupted} cannot be written to (Read-only file system)" in line


def test_a_workdir_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--workdir=.*file cannot be written to \(File exists\)"):
        modes.train(tiny_config(), tmp_path / "file", "")
    assert (tmp_path / "file").read_text() == "mine"


# -------------------------------------------------------------------------------------------- NaN


def test_persistent_nan_stops_the_run_and_the_last_good_checkpoint_stays(tmp_path):
    absurd = (
        "--config.training.learning_rate=1e12",
        "--config.training.max_gradient_norm=0",
        "--config.training.warmup=20 steps",
        "--config.training.evaluate_every=60 steps",  # else what is finite would stop it before
    )
    stories = []
    for _ in range(2):  # the relaunch resumes, and comes to the same end
        finished = train(tmp_path, *absurd, check=False)
        assert finished.returncode == 3, finished.stderr
        (line,) = error_lines(finished.stderr)
        story = re.search(
            r"stopped at step (\d+): 20 updates in a row were not finite \(largest gradient norm "
            r"(\S+), parameter norm (\S+)\); the last good checkpoint is at step (\d+);",
            line,
        )
        assert story, line
        stories.append(story.groups())
        step = int(story[4])
        assert step == complete_checkpoints(tmp_path)[-1]
        arrays = saved_arrays(tmp_path, step)
        assert all(np.isfinite(array).all() for array in arrays.values())
        assert not (tmp_path / "results.json").exists()
    assert stories[0][0] == stories[1][0] and stories[0][3] == stories[1][3]


def test_parameters_that_overflow_stop_the_run_before_they_are_saved(tmp_path):
    absurd = ("--config.training.learning_rate=1e38", "--config.training.weight_decay=1e3")
    finished = train(tmp_path, *absurd, check=False)
    assert finished.returncode == 3, finished.stderr
    (line,) = error_lines(finished.stderr)
    assert re.search(
        r"stopped at step \d+: the norm of the parameters is not finite \(largest gradient", line
    )
    assert "there is no checkpoint" in line
