"""Measures and prints one table.

python -m benchmarks [--only=NAME] [--repeats=N] [--json=FILE] [--quick]
"""

import argparse
import json
import pathlib

from experiments import host_memory


def main() -> None:
    """Parses the arguments, measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="name of the benchmark to run, or of several: resnet_step")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=pathlib.Path, help="file that gets every figure")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()  # as the command does, before anything is allocated

    from experiments import xla

    xla.avoid_faulty_fusions()

    import jax

    from benchmarks import harness, suite

    jax.config.update("jax_enable_compilation_cache", False)  # or nothing would be compiled anew

    chosen = suite.choose(arguments.only)
    if not chosen:
        names = ", ".join(benchmark.name for benchmark in suite.BENCHMARKS)
        parser.error(f"--only={arguments.only!r} is not one of {names}")
    if arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats} must be at least 1")
    print(harness.TABLE_HEAD)
    measured = []
    for benchmark in chosen:
        measurement = harness.measure(benchmark, repeats=arguments.repeats, quick=arguments.quick)
        print(harness.table_rows(measurement), flush=True)
        measured.append(measurement.as_json())
        if arguments.json:
            arguments.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
