"""Interleaved repeats of contenders that do the same work."""

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Step = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One kind of work and those who do it.

    Attributes:
        name: to choose it by.
        work: what a step does, in words.
        target: what is aimed at, in words.
        contenders: by name, what builds a step, ours first; `quick` asks for the smallest sizes
            that run. Building may compile; a step returns when its result is there.
        units: how much of the work a step does; its time is divided by it.
    """

    name: str
    work: str
    target: str
    contenders: Mapping[str, Callable[[bool], Step]]
    units: int = 1


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Seconds a unit of work, of every repeat of every contender installed, ours first."""

    benchmark: Benchmark
    seconds: Mapping[str, Sequence[float]]
    missing: Mapping[str, str]  # contenders that could not be built, and why

    def ratio(self, contender: str) -> float:
        """How many times as long as ours a contender takes: median over the repeats."""
        ours = next(iter(self.benchmark.contenders))
        pairs = zip(self.seconds[contender], self.seconds[ours], strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    def as_json(self) -> dict[str, Any]:
        """All that was measured, and on what."""
        return {
            "name": self.benchmark.name,
            "work": self.benchmark.work,
            "target": self.benchmark.target,
            "machine": platform.processor() or platform.machine(),
            "seconds": {name: list(values) for name, values in self.seconds.items()},
            "ratios": {name: self.ratio(name) for name in self.seconds},
            "missing": dict(self.missing),
        }


def measure(benchmark: Benchmark, *, repeats: int, quick: bool = False) -> Measurement:
    """Times the contenders in turn, `repeats` times, after one step that does not count.

    The machine's speed may change within seconds, and it does so for all of them.

    Args:
        benchmark: what to measure.
        repeats: how often.
        quick: with the smallest sizes, to see that it runs.
    """
    steps, missing = {}, {}
    for name, build in benchmark.contenders.items():
        try:
            steps[name] = build(quick)
        except ImportError as error:
            missing[name] = f"{error}; pip install -e '.[bench]'"
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append((time.perf_counter() - started) / benchmark.units)
    return Measurement(benchmark, seconds, missing)


def table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table, a line each."""
    lines = [
        "| work | contender | ms, median | times ours | target |",
        "|---|---|---|---|---|",
    ]
    for measurement in measurements:
        benchmark = measurement.benchmark
        for index, name in enumerate(benchmark.contenders):
            first = (benchmark.work, benchmark.target) if index == 0 else ("", "")
            if name in measurement.missing:
                lines.append(f"| {first[0]} | {name} | not installed | | {first[1]} |")
                continue
            median = 1000 * statistics.median(measurement.seconds[name])
            ratio = "" if index == 0 else f"{measurement.ratio(name):.2f}"
            lines.append(f"| {first[0]} | {name} | {median:.1f} | {ratio} | {first[1]} |")
    return "\n".join(lines)
