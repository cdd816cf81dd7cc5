"""A training step of the MLP SeRe-VAE beside PyTorch, and the rate that it computes at.

Both make the whole step: fresh binarization, Adam, clipping, averages and metrics; the data set of
MNIST's size lies on the device, and `UPDATES` are made in a row, as a training dispatches them.
"""

import functools

from ml_collections import ConfigDict

from benchmarks import machine, operations, production
from benchmarks.harness import Benchmark, Step, Target, rate
from configs import mnist_comparison, mnist_mlp
from sere_jax.config import model_config

UPDATES = 50
SYSTEM_UPDATES = 10
NUM_EXAMPLES = 55_000


def ours(quick: bool) -> Step:
    """The production step of `configs/mnist_mlp.py`."""
    return production.train_step(_config(quick), UPDATES, num_examples=_num_examples(quick))


def torch_step(quick: bool, *, compiled: bool) -> Step:
    """The same model in PyTorch, a Python loop over modules."""
    from benchmarks import pytorch

    config = _config(quick)
    return pytorch.train_step(
        pytorch.SeReVAE(model_config(config)),
        production.random_images(config, _num_examples(quick)),
        config.training,
        updates=UPDATES,
        compiled=compiled,
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
        "PyTorch": functools.partial(torch_step, compiled=False),
        "torch.compile": functools.partial(torch_step, compiled=True),
    },
    targets={"PyTorch": Target(">=", 2.5), "torch.compile": Target(">=", 2.0)},
    units=UPDATES,
)
MLP_RATE = Benchmark(
    name="mlp_rate",
    work="floating-point rate of that step",
    contenders={"product of matrices": machine.matmul, "train step": our_rate},
    targets={"train step": Target(">=", 0.55)},
    unit="GFLOP/s",
)
SYSTEMS = Benchmark(
    name="systems",
    work="train step of the systems of the paper's MNIST table, batch 200",
    contenders={row: functools.partial(system, row=row) for row in mnist_comparison.SYSTEMS},
    units=SYSTEM_UPDATES,
)
