"""Compiled programs, without running them: time to compile, memory, all-reduces.

python -m benchmarks.programs --config=NAME [--quick]

prints how many all-reduces a training step of one of `CONFIGS` has on the devices there are.
"""

import argparse
import functools
import os
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import sere_jax
from benchmarks import production
from benchmarks.harness import Benchmark, Step, Target, constant
from benchmarks.processes import ROOT
from configs import cifar_checkerboard, cifar_maf, mnist_mlp

NUM_DEVICES = 4
CONFIGS = {
    "mnist_mlp": lambda quick: production.reduced_mlp(mnist_mlp.get_config(), quick),
    "cifar_checkerboard": lambda quick: production.reduced_resnet(
        cifar_checkerboard.get_config(), quick
    ),
    "cifar_maf:maf10": lambda quick: production.reduced_flow(cifar_maf.get_config("maf10"), quick),
}


def compilation(quick: bool, *, num_layers: int) -> Step:
    """Seconds to trace and compile the training step."""
    config = _mlp(quick, num_layers)

    def step():
        started = time.perf_counter()
        production.compile_train_step(config)
        return time.perf_counter() - started

    return step


def training_memory(quick: bool, *, num_layers: int) -> Step:
    """MB of temporary memory of the training step."""
    return constant(_temporary_megabytes(production.compile_train_step(_mlp(quick, num_layers))))


def evaluation_memory(quick: bool, *, num_samples: int) -> Step:
    """MB of temporary memory of the importance-weighted likelihood of 100 images."""
    config = production.reduced_mlp(mnist_mlp.get_config(), quick)
    model = sere_jax.create_model(config)
    key = jax.random.key(0)
    params = jax.eval_shape(functools.partial(sere_jax.init, model), key)
    x = jax.ShapeDtypeStruct((config.evaluation.batch_size, *config.model.data_shape), jnp.float32)
    estimate = jax.jit(functools.partial(sere_jax.log_likelihood, model, num_samples=num_samples))
    return constant(_temporary_megabytes(estimate.lower(params, x, key).compile()))


def all_reduces(quick: bool, *, name: str) -> Step:
    """How many a training step of `name` has on several devices, in a process that has them."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={NUM_DEVICES}",
    }
    command = [sys.executable, "-m", "benchmarks.programs", f"--config={name}"]
    command += ["--quick"] if quick else []
    printed = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return constant(float(printed))


def count_all_reduces(program: str) -> int:
    """In the loop over updates of a training program, given as HLO.

    What the compiler took out of the loop, to the entry at the end, a dispatch does once: the mean
    over devices of a KL that is 0, say.
    """
    loops, _, _ = program.partition("\nENTRY ")
    return len(re.findall(r"\ball-reduce(?:-start)?\(", loops))


def main() -> None:
    """Prints the number of all-reduces."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.programs", description=__doc__)
    parser.add_argument("--config", required=True, choices=CONFIGS)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    config = CONFIGS[arguments.config](arguments.quick)
    print(count_all_reduces(production.compile_train_step(config).as_text() or ""))


def _mlp(quick: bool, num_layers: int) -> ConfigDict:
    config = production.reduced_mlp(mnist_mlp.get_config(), quick)
    config.model.num_layers = min(num_layers, 16) if quick else num_layers
    return config


def _temporary_megabytes(program: jax.stages.Compiled) -> float:
    analysis = program.memory_analysis()
    assert analysis is not None
    return 1e-6 * analysis.temp_size_in_bytes


COMPILATION = Benchmark(
    name="compilation",
    work="tracing and compiling the train step of the MLP SeRe-VAE",
    contenders={
        "L = 10": functools.partial(compilation, num_layers=10),
        "L = 100": functools.partial(compilation, num_layers=100),
    },
    targets={"L = 100": Target("<=", 1.3)},
    unit="s",
    max_repeats=3,
)
TRAINING_MEMORY = Benchmark(
    name="memory:training",
    work="temporary memory of the train step of the MLP SeRe-VAE",
    contenders={
        "L = 10": functools.partial(training_memory, num_layers=10),
        "L = 40": functools.partial(training_memory, num_layers=40),
    },
    targets={"L = 40": Target("<=", 4.2)},
    unit="MB",
    max_repeats=1,
)
EVALUATION_MEMORY = Benchmark(
    name="memory:evaluation",
    work="temporary memory of log p(x) of 100 images",
    contenders={
        "K = 100": functools.partial(evaluation_memory, num_samples=100),
        "K = 1000": functools.partial(evaluation_memory, num_samples=1000),
    },
    targets={"K = 1000": Target("<=", 1.01)},
    unit="MB",
    max_repeats=1,
)
COLLECTIVES = Benchmark(
    name="collectives",
    work=f"all-reduces of a train step on {NUM_DEVICES} devices",
    contenders={name: functools.partial(all_reduces, name=name) for name in CONFIGS},
    targets=dict.fromkeys(CONFIGS, Target("=", 1, unit="")),
    unit="",
    max_repeats=1,
    is_relative=False,
)

if __name__ == "__main__":
    main()
