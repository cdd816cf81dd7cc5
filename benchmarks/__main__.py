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
    parser.add_argument("--only", help="name of the one benchmark to run")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=pathlib.Path, help="file that gets every time")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs")
    arguments = parser.parse_args()
    host_memory.keep_freed_memory()  # as the command does, before anything is allocated

    from benchmarks import flows, harness, sampling
    from experiments import xla

    xla.avoid_faulty_fusions()

    all_benchmarks = (flows.MAF_10, sampling.SAMPLING)
    benchmarks = {benchmark.name: benchmark for benchmark in all_benchmarks}
    if arguments.only is not None and arguments.only not in benchmarks:
        parser.error(f"--only={arguments.only!r} is not one of {', '.join(benchmarks)}")
    if arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats} must be at least 1")
    chosen = [arguments.only] if arguments.only else list(benchmarks)
    measurements = [
        harness.measure(benchmarks[name], repeats=arguments.repeats, quick=arguments.quick)
        for name in chosen
    ]
    print(harness.table(measurements))
    if arguments.json:
        lines = json.dumps([measurement.as_json() for measurement in measurements], indent=2)
        arguments.json.write_text(lines + "\n")


if __name__ == "__main__":
    main()
