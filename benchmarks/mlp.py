"""A training step of the MLP SeRe-VAE beside PyTorch, and the rate that it computes at.

Both make the whole step: fresh binarization, Adam, clipping, averages and metrics; the data set of
MNIST's size lies on the device, and `UPDATES` are made in a row, as a training dispatches them.
"""

import functools

from ml_collections import ConfigDict

from benchmarks import machine, operations, production
from benchmarks.harness import Benchmark, Best, Step, Target, rate
from configs import mnist_comparison, mnist_mlp
from sere_jax.config import model_config

UPDATES = 50
SYSTEM_UPDATES = 10
NUM_EXAMPLES = 55_000
OURS_BFLOAT16 = "ours, bfloat16"
COMPILED_BFLOAT16 = "torch.compile, bfloat16 autocast"


def ours(quick: bool, *, precision: str = "float32") -> Step:
    """The production step of `configs/mnist_mlp.py`."""
    config = _config(quick)
    config.training.precision = precision
    return production.train_step(config, UPDATES, num_examples=_num_examples(quick))


def torch_step(quick: bool, *, compiled: bool, bfloat16: bool = False) -> Step:
    """The same model in PyTorch, a Python loop over modules."""
    from benchmarks import pytorch

    config = _config(quick)
    return pytorch.train_step(
        pytorch.SeReVAE(model_config(config)),
        production.random_images(config, _num_examples(quick)),
        config.training,
        updates=UPDATES,
        compiled=compiled,
        bfloat16=bfloat16,
    )


def our_rate(quick: bool) -> Step:
    """GFLOP/s of the production step; see `operations.of_training`."""
    config = _config(quick)
    of_update = operations.of_training(config, config.training.batch_size)
    return rate(ours(quick), 1e-9 * UPDATES * of_update)


def system(quick: bool, *, row: str) -> Step:
    """The production step of a row of `configs/mnist_comparison.py`."""
    config = production.reduced_mlp(mnist_comparison.get_config(row), quick)
    return production.train_step(config, SYSTEM_UPDATES)


def _config(quick: bool) -> ConfigDict:
    return production.reduced_mlp(mnist_mlp.get_config(), quick)


def _num_examples(quick: bool) -> int:
    return UPDATES * production.QUICK_BATCH_SIZE if quick else NUM_EXAMPLES


MLP_STEP = Benchmark(
    name="mlp_step",
    work="train step of the MLP SeRe-VAE, 10 layers of 10 latents, batch 200",
    contenders={
        "ours": ours,
        OURS_BFLOAT16: functools.partial(ours, precision="bfloat16"),
        "PyTorch": functools.partial(torch_step, compiled=False),
        "torch.compile": functools.partial(torch_step, compiled=True),
        COMPILED_BFLOAT16: functools.partial(torch_step, compiled=True, bfloat16=True),
    },
    targets={"PyTorch": Target(">=", 1.7), "torch.compile": Target(">=", 1.4)},
    units=UPDATES,
    best=Best(
        ours=("ours", OURS_BFLOAT16),
        theirs=("torch.compile", COMPILED_BFLOAT16),
        target=Target(">=", 1.5),
        needs="amx_bf16",
    ),
)
MLP_RATE = Benchmark(
    name="mlp_rate",
    work="floating-point rate of that step",
    contenders={"product of matrices": machine.matmul, "train step": our_rate},
    targets={"train step": Target(">=", 0.75)},
    unit="GFLOP/s",
)
SYSTEMS = Benchmark(
    name="systems",
    work="train step of the systems of the paper's MNIST table, batch 200",
    contenders={row: functools.partial(system, row=row) for row in mnist_comparison.SYSTEMS},
    units=SYSTEM_UPDATES,
)
