"""Launches the command as its users do, and reads what a run has written."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp

from sere_jax.xla_flag import is_known

ROOT = pathlib.Path(__file__).parents[1]
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
    "--config.evaluation.test_elbo_every=50%",
    "--config.sampling.num_images=0",
    "--config.sampling.completion_steps=0",
)
PICTURES = "--config.sampling.num_images=9"
# Most programs of tests run for a moment: with these, XLA compiles them in two thirds of the time.
EMITTERS = "xla_cpu_use_fusion_emitters"  # what users have, and some tests turn on again
QUICK_OPTIONS = {EMITTERS: False, "xla_cpu_parallel_codegen_split_count": 1}
QUICK_FLAGS = " ".join(
    f"--{option}={str(value).lower()}"
    for option, value in QUICK_OPTIONS.items()
    if is_known(option)
)
SHARED_FOLDER = "SERE_JAX_TESTS_FOLDER"  # variable that names the session's folder


def command(*arguments, config="configs/digits.py"):
    chosen = () if config is None else (f"--config={config}",)
    return [sys.executable, "-m", "experiments.main", *chosen, *arguments]


def launch(*arguments, devices=1, config="configs/digits.py", check=True, variables=None):
    finished = subprocess.run(
        command(*arguments, config=config),
        cwd=ROOT,
        env=environment(devices) | (variables or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check:
        assert finished.returncode == 0, finished.stderr
    return finished


@contextlib.contextmanager
def start(workdir, *arguments, devices=1):
    """The training of the tiny run in `workdir`, in the background until the block ends."""
    with subprocess.Popen(
        command(f"--workdir={workdir}", *TINY, *arguments),
        cwd=ROOT,
        env=environment(devices),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def environment(devices=1):
    return {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_FLAGS}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # Launches share compiled programs; one that a killed launch left half is compiled anew.
        "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache:UserWarning",
    }


def shared_folder():
    return pathlib.Path(os.environ[SHARED_FOLDER])


@contextlib.contextmanager
def locked(path):
    """Holds the lock of that name, which all workers of the session see."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def without_speed(records):
    return [{**record, "images_per_second": None} for record in records]


def last_step(workdir):
    """The last step in the log of a run that is under way; 0 before the first."""
    path = workdir / "metrics.jsonl"
    steps = re.findall(r'^{"step": (\d+),', path.read_text() if path.exists() else "", re.MULTILINE)
    return int(steps[-1]) if steps else 0


def wait_until(condition, *processes):
    """Returns when `condition` holds; no process may end before that."""
    while not condition():
        for process in processes:
            if process.poll() is not None:
                raise AssertionError(f"the launch ended early: {process.communicate()}")
        time.sleep(0.0005)
