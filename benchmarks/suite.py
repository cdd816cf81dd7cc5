"""All benchmarks, in the order of the table."""

from benchmarks import flows, importance, machine, mlp, processes, programs, resnet, sampling
from benchmarks.harness import Benchmark

BENCHMARKS = (
    machine.MATMUL,
    machine.BANDWIDTH,
    mlp.MLP_STEP,
    mlp.MLP_RATE,
    mlp.SYSTEMS,
    resnet.RESNET_SMALL,
    resnet.RESNET,
    resnet.RESNET_ENCODERS,
    importance.IMPORTANCE_WEIGHTED,
    importance.IMPORTANCE_WEIGHTED_RATE,
    flows.MAF_10,
    sampling.SAMPLING,
    programs.COMPILATION,
    programs.TRAINING_MEMORY,
    programs.EVALUATION_MEMORY,
    programs.COLLECTIVES,
    processes.START_UP,
)


def choose(name: str | None) -> list[Benchmark]:
    """Those called `name`, or `name:VARIANT`; all without a name."""
    return [
        benchmark
        for benchmark in BENCHMARKS
        if name is None or name in (benchmark.name, benchmark.name.partition(":")[0])
    ]
