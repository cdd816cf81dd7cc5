"""Runs of two processes on this machine, launched as their users launch them."""

import json
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from command_line import (
    ROOT,
    assert_same_bits,
    command,
    environment,
    last_step,
    logged,
    saved_arrays,
    wait_until,
)

pytestmark = pytest.mark.slow

NUM_STEPS = 120
TINY = (
    "--config.model.num_layers=4",
    "--config.model.latent_shape=(2,)",
    "--config.model.hidden_size=8",
    "--config.model.bijector=identity",
    "--config.model.couple_prior=False",
    "--config.model.couple_data=False",
    "--config.dataset.validation_size=31",
    f"--config.training.num_steps={NUM_STEPS}",
    "--config.training.steps_per_dispatch=2",
    "--config.training.evaluate_every=30 steps",
    "--config.training.checkpoint_every=10 steps",
    "--config.evaluation.num_importance_samples=3",
    "--config.evaluation.num_examples=31",
    "--config.sampling.num_images=4",
)
GUARD_SECONDS = 300  # against hanging


def start(*arguments):
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(workdir, *arguments, of_each=((), ())):
    """Processes 0 and 1 of one run; process 1 is given a workdir that nobody needs."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return [
        start(
            f"--workdir={directory}",
            f"--coordinator_address=localhost:{port}",
            "--num_processes=2",
            f"--process_id={index}",
            *TINY,
            *arguments,
            *of_each[index],
        )
        for index, directory in enumerate((workdir, other_workdir(workdir)))
    ]


def other_workdir(workdir):
    return workdir.with_name("of_process_1")


def finish(*processes):
    """(exit code, stdout, stderr) of each process."""
    try:
        outputs = [process.communicate(timeout=GUARD_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *output) for process, output in zip(processes, outputs, strict=True)
    ]


def train_in_one_process(workdir):
    ((exit_code, _, stderr),) = finish(start(f"--workdir={workdir}", *TINY))
    assert exit_code == 0, stderr


def assert_same_run(workdir, other):
    """The same but for rounding: the tolerance of one run on different numbers of devices."""
    arrays, expected = saved_arrays(workdir, NUM_STEPS), saved_arrays(other, NUM_STEPS)
    assert arrays.keys() == expected.keys() and len(arrays) > 50
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-2, atol=2e-4, err_msg=name)
    assert_same_results(results_of(workdir), results_of(other))
    records, expected_records = logged(workdir), logged(other)
    assert [(record["split"], record["step"]) for record in records] == [
        (record["split"], record["step"]) for record in expected_records
    ]
    np.testing.assert_allclose(
        [record["elbo"] for record in records],
        [record["elbo"] for record in expected_records],
        rtol=1e-4,
    )


def assert_same_results(results, expected):
    for name in ("nll", "nll_stderr", "elbo", "elbo_stderr", "bits_per_dim", "validation_elbo"):
        assert results[name] == pytest.approx(expected[name], rel=1e-3), name
    for name in ("step", "epoch", "num_examples", "num_params", "num_importance_samples"):
        assert results[name] == expected[name], name
    np.testing.assert_allclose(results["kl_per_layer"], expected["kl_per_layer"], rtol=1e-2)


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def finished_by_one(tmp_path_factory):
    """A workdir trained by one process with one device."""
    workdir = tmp_path_factory.mktemp("runs") / "by_one"
    train_in_one_process(workdir)
    return workdir


def test_two_processes_compute_the_run_of_one_even_if_one_is_killed(finished_by_one, tmp_path):
    workdir = tmp_path / "by_two"
    processes = start_two(workdir)
    wait_until(lambda: last_step(workdir) >= 24, *processes)
    processes[1].kill()
    (survivor_exit_code, _, stderr), (killed_exit_code, _, _) = finish(*processes)
    assert killed_exit_code == -signal.SIGKILL
    assert survivor_exit_code not in (0, 2)
    assert "another process of the run was lost" in stderr
    assert not (workdir / "results.json").exists()

    first, second = finish(*start_two(workdir))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "test: -log p(x)" in first[1] and "test:" not in second[1]
    assert second[2] == ""
    assert not other_workdir(workdir).exists()
    assert_same_run(workdir, finished_by_one)

    streamed = tmp_path / "streamed"
    first, second = finish(*start_two(streamed, "--config.dataset.placement=stream"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert_same_bits(saved_arrays(streamed, NUM_STEPS), saved_arrays(workdir, NUM_STEPS))
    assert results_of(streamed)["nll"] == results_of(workdir)["nll"]


def test_a_signal_to_one_process_stops_both_and_one_process_resumes(finished_by_one, tmp_path):
    workdir = tmp_path / "stopped"
    processes = start_two(workdir)
    wait_until(lambda: last_step(workdir) >= 6, *processes)
    processes[1].send_signal(signal.SIGTERM)
    first, second = finish(*processes)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "SIGTERM: saved at step" in first[2] and second[2] == ""
    assert not (workdir / "results.json").exists()
    last_checkpoint = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 6 <= last_checkpoint == logged(workdir)[-1]["step"] < NUM_STEPS
    train_in_one_process(workdir)
    assert_same_run(workdir, finished_by_one)


def test_images_that_differ_between_processes_are_refused(tmp_path):
    arguments = []
    for seed in (0, 1):
        images = np.random.default_rng(seed).integers(0, 256, (200, 8, 8), np.uint8)
        np.savez(tmp_path / f"{seed}.npz", train=images, test=images)
        path = tmp_path / f"{seed}.npz"
        arguments.append(("--config.dataset.name=npz", f"--config.dataset.path={path}"))
    processes = start_two(tmp_path / "run", of_each=arguments)
    for exit_code, _, stderr in finish(*processes):
        assert exit_code == 2
        assert re.fullmatch(
            r"error: the images of this process differ from those of process 0: fingerprint "
            r"\w{16} instead of \w{16}; .*\(process 1\)\n",
            stderr,
        )
    assert not (tmp_path / "run").exists()


def test_what_one_process_finds_wrong_is_one_line_in_both(finished_by_one):
    log = (finished_by_one / "metrics.jsonl").read_bytes()
    for mode in ("train", "evaluate"):
        processes = start_two(
            finished_by_one, f"--mode={mode}", "--config.training.learning_rate=0.5"
        )
        first, second = finish(*processes)
        assert first[0] == second[0] == 2
        assert first[2] == second[2]  # process 1 has no access to the workdir
        assert re.fullmatch(r"error: .*training.learning_rate: 0.002 -> 0.5.*\n", first[2])
        assert not other_workdir(finished_by_one).exists()
    assert (finished_by_one / "metrics.jsonl").read_bytes() == log


MEETING = """
import sys
from experiments import main
from experiments.distributed import processes
processes.initialize(sys.argv[1], 2, int(sys.argv[2]), timeout=float(sys.argv[3]))
"""

HELPERS = (
    MEETING
    + """
import jax
import numpy as np
from experiments.system.errors import UserError
me = jax.process_index()
arrays = {
    "float": np.array([-0.0, np.nan, 1e-45, np.inf, 0.1], np.float32) * (1 - 2 * me),
    "key": np.array([2**32 - 1, 7 + me], np.uint32),
    "step": np.array(-5 - me, np.int32),
    "odd": np.array([True, bool(me), True]),
}
received = processes.arrays_of_first_process(arrays)
assert processes.json_of_first_process({"me": me, "é": "x" * 9000}) == {"me": 0, "é": "x" * 9000}
assert processes.any_signal(15 * me or None) == 15 and processes.any_signal(None) is None
assert processes.on_first_process(lambda: "result") == (None if me else "result")

def fail_in_second():
    if me == 1:
        raise UserError("no such file")

try:
    processes.on_every_process(fail_in_second)
except UserError as error:
    print(error)
try:
    processes.check_same("the colours", lambda: me, lambda ours, first: ours - first and "1, not 0")
except UserError as error:
    print(error)
print({name: (array.dtype.str, array.shape, array.tobytes()) for name, array in received.items()})
"""
)


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_share_arrays_bit_by_bit_and_errors():
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [python(HELPERS, address, index, GUARD_SECONDS) for index in (0, 1)]
    for exit_code, stdout, stderr in finish(*processes):
        assert exit_code == 0, stderr
        lines = [line for line in stdout.splitlines() if not line.startswith("[Gloo]")]
        assert lines[0] == "no such file (process 1)"
        assert lines[1].startswith("the colours differ from those of process 0: 1, not 0; ")
        assert lines[2] == str(
            {
                "float": (
                    "<f4",
                    (5,),
                    np.array([-0.0, np.nan, 1e-45, np.inf, 0.1], np.float32).tobytes(),
                ),
                "key": ("<u4", (2,), np.array([2**32 - 1, 7], np.uint32).tobytes()),
                "odd": ("|b1", (3,), b"\1\0\1"),
                "step": ("<i4", (), np.array(-5, np.int32).tobytes()),
            }
        )


def test_missing_processes_are_one_line_and_no_endless_wait():
    with socket.socket() as closed:  # bound, so that nobody else answers there
        closed.bind(("", 0))
        address = f"localhost:{closed.getsockname()[1]}"
        ((exit_code, _, stderr),) = finish(python(MEETING, address, 1, 1))
    assert exit_code == 2
    assert stderr.startswith("error: not all processes of the run were connected within 1 seconds")
    assert address in stderr and stderr.count("\n") == 1


def test_a_port_in_use_is_one_line():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        ((exit_code, _, stderr),) = finish(
            start(f"--coordinator_address=localhost:{port}", "--num_processes=2", "--process_id=0")
        )
    assert exit_code == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert f"port {port} cannot be used here" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes=2"], "go together"),
        (["--coordinator_address=a:1", "--process_id=0"], "go together"),
        (["--distributed", "--num_processes=2", "--process_id=0"], "go together"),
        (
            ["--coordinator_address=localhost", "--num_processes=2", "--process_id=0"],
            "--coordinator_address=localhost is not HOST:PORT",
        ),
        (
            ["--coordinator_address=a:123456", "--num_processes=2", "--process_id=0"],
            "--coordinator_address=a:123456 is not HOST:PORT",
        ),
        (
            ["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 must be one of 0 .. 1",
        ),
        (
            ["--coordinator_address=a:1", "--num_processes=2", "--process_id=-1"],
            "--process_id=-1 must be one of 0 .. 1",
        ),
        (
            ["--coordinator_address=a:1", "--num_processes=0", "--process_id=0"],
            "--num_processes=0 must be at least 1",
        ),
        (["--distributed", "--mode=sample"], "--mode=sample is the work of one process"),
        (
            [
                "--coordinator_address=a:1",
                "--num_processes=2",
                "--process_id=1",
                "--mode=report",
            ],
            "--mode=report is the work of one process",
        ),
    ],
)
def test_impossible_flags_are_one_line(arguments, message):
    ((exit_code, stdout, stderr),) = finish(start(*arguments))
    assert exit_code == 2 and stdout == ""
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert message in stderr
