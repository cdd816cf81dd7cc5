"""The command as its users start it: help, and the first training step of the quickstart."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.harness import Benchmark, Step, Target

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "experiments.main")
QUICK = ("--config.model.num_layers=2", "--config.model.hidden_size=8")
POLL_SECONDS = 0.01


def help_text(quick: bool) -> Step:
    """Seconds of `python -m experiments.main --help`."""
    del quick

    def step():
        started = time.perf_counter()
        subprocess.run((*COMMAND, "--help"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    return step


def first_step_cold(quick: bool) -> Step:
    """Seconds to the first training step with nothing compiled before."""

    def step():
        with tempfile.TemporaryDirectory() as cache:
            return first_step_seconds(cache, quick)

    return step


def first_step_warm(quick: bool) -> Step:
    """Seconds to the first training step with all programs in the compilation cache."""
    cache = tempfile.TemporaryDirectory()
    first_step_seconds(cache.name, quick)
    return lambda: first_step_seconds(cache.name, quick)


def first_step_seconds(cache: str, quick: bool) -> float:
    """From the start of a process to the first line of its log.

    Args:
        cache: directory of the persistent compilation cache.
        quick: with a tiny model.
    """
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # a GPU has this process on it too
    }
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        log = workdir / "metrics.jsonl"
        command = (
            *COMMAND,
            "--config=configs/digits.py",
            f"--workdir={workdir}",
            "--config.training.steps_per_dispatch=1",
            *(QUICK if quick else ()),
        )
        started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as process:
            try:
                while not (log.exists() and log.stat().st_size):
                    if process.poll() is not None:
                        raise RuntimeError(f"no training step: {process.communicate()[1]!r}")
                    time.sleep(POLL_SECONDS)
                return time.perf_counter() - started
            finally:
                process.kill()


START_UP = Benchmark(
    name="start_up",
    work="from the start of a process",
    contenders={
        "--help": help_text,
        "first step of digits": first_step_cold,
        "first step of digits, compiled before": first_step_warm,
    },
    targets={
        "--help": Target("<", 0.5, "s"),
        "first step of digits": Target("<", 12.0, "s"),
        "first step of digits, compiled before": Target("<", 6.0, "s"),
    },
    unit="s",
    max_repeats=3,
    is_relative=False,
)
