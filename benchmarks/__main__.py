"""Measures and prints one table, or where the time of each step goes.

python -m benchmarks [--only=NAME] [--repeats=N] [--json=FILE] [--quick] [--profile]
"""

import argparse
import json
import pathlib

from experiments.system import host_memory


def main() -> None:
    """Parses the arguments, measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="name of the benchmark to run, or of several: resnet_step")
    parser.add_argument("--repeats", type=int, help="how often to time each, 10 by default")
    parser.add_argument("--json", type=pathlib.Path, help="file that gets every figure")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs")
    parser.add_argument("--profile", action="store_true", help="time by kind of instruction")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()  # as the command does, before anything is allocated

    import jax

    from benchmarks import computer, harness, profiling, suite

    jax.config.update("jax_enable_compilation_cache", False)  # or nothing would be compiled anew

    chosen = suite.choose(arguments.only)
    if not chosen:
        names = ", ".join(benchmark.name for benchmark in suite.BENCHMARKS)
        parser.error(f"--only={arguments.only!r} is not one of {names}")
    repeats = 10 if arguments.repeats is None else arguments.repeats
    if repeats < 1:
        parser.error(f"--repeats={repeats} must be at least 1")
    print(f"{computer.as_line(computer.describe())}\n")
    if arguments.profile:
        if arguments.repeats is not None or arguments.json:
            parser.error("--profile runs each once and only prints: leave out --repeats and --json")
        for benchmark in chosen:
            for name, profile in profiling.profile_contenders(benchmark, quick=arguments.quick):
                print(f"`{benchmark.name}` {name}\n\n{profile.as_table()}\n", flush=True)
        return
    print(harness.TABLE_HEAD)
    measured = []
    for benchmark in chosen:
        measurement = harness.measure(benchmark, repeats=repeats, quick=arguments.quick)
        print(harness.table_rows(measurement), flush=True)
        measured.append(measurement.as_json())
        if arguments.json:
            arguments.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
