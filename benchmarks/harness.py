"""Interleaved repeats of contenders that do the same work."""

import dataclasses
import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import computer

# Is timed if it returns nothing; else what it returns counts: a rate, a number of bytes, ...
Step = Callable[[], float | None]

_COMPARISONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt, "=": operator.eq}


@dataclasses.dataclass(frozen=True)
class Target:
    """A bound on what a contender comes to.

    Attributes:
        comparison: `>=`, `<=`, `<` or `=`.
        bound: what its ratio, or its figure, is compared with.
        unit: `x` for the ratio, else that of the figure.
    """

    comparison: str
    bound: float
    unit: str = "x"

    def __str__(self) -> str:
        return f"{self.comparison} {self.bound:g} {self.unit}".strip()

    def is_met(self, figure: float, ratio: float) -> bool:
        """Whether a contender with this figure and ratio reaches it."""
        value = ratio if self.unit == "x" else figure
        return _COMPARISONS[self.comparison](value, self.bound)


@dataclasses.dataclass(frozen=True)
class Best:
    """The fastest of some contenders beside the fastest of others, by their medians.

    Attributes:
        ours: contenders of a benchmark that is timed.
        theirs: others of it.
        target: of the ratio of their times to ours.
        needs: an instruction set of `computer.INSTRUCTION_SETS`, without which it is no target.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    target: Target
    needs: str


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One kind of work and those who do it.

    Attributes:
        name: to choose it by; `KIND:VARIANT` is also chosen by KIND.
        work: what a step does, in words.
        contenders: by name, what builds a step; the others are compared with the first. `quick`
            asks for the smallest sizes that run. Building may compile; a step returns when its
            result is there.
        targets: of some contenders.
        units: how much of the work a step does; its time is divided by it.
        unit: of the figures. Those of steps that are timed are milliseconds.
        units_name: what the units are, where their rate is worth printing.
        max_repeats: more of them would tell nothing, or take too long.
        is_relative: whether ratios mean anything.
        best: a last line of the table.
    """

    name: str
    work: str
    contenders: Mapping[str, Callable[[bool], Step]]
    targets: Mapping[str, Target] = dataclasses.field(default_factory=dict)
    units: int = 1
    unit: str = "ms"
    units_name: str = ""
    max_repeats: int | None = None
    is_relative: bool = True
    best: Best | None = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Figures of a unit of work, of every repeat of every contender installed, the first first."""

    benchmark: Benchmark
    figures: Mapping[str, Sequence[float]]
    missing: Mapping[str, str]  # contenders that could not be built, and why

    def ratio(self, contender: str, base: str = "") -> float:
        """The contender's figure over that of `base`, the first one: median over the repeats."""
        base = base or next(iter(self.benchmark.contenders))
        pairs = zip(self.figures[contender], self.figures[base], strict=True)
        return statistics.median(figure / base for figure, base in pairs)

    def verdict(self, contender: str) -> str:
        """The contender's target, and whether it is met; empty without one."""
        target = self.benchmark.targets.get(contender)
        if target is None or contender in self.missing:
            return "" if target is None else str(target)
        figure = statistics.median(self.figures[contender])
        is_met = target.is_met(figure, self.ratio(contender))
        return f"{target}: {'met' if is_met else 'missed'}"

    def fastest(self, contenders: Sequence[str]) -> str | None:
        """The one of the smallest median; None if all are missing."""
        built = [name for name in contenders if name in self.figures]
        return min(built, key=lambda name: statistics.median(self.figures[name]), default=None)

    def best_ratio(self) -> float | None:
        """What `Benchmark.best` asks for; None without it, or if one side is missing."""
        if self.benchmark.best is None:
            return None
        ours = self.fastest(self.benchmark.best.ours)
        theirs = self.fastest(self.benchmark.best.theirs)
        return self.ratio(theirs, ours) if ours and theirs else None

    def as_json(self) -> dict[str, Any]:
        """All that was measured, and on what (`computer.describe`)."""
        return {
            "name": self.benchmark.name,
            "work": self.benchmark.work,
            "machine": computer.describe(),
            "unit": self.benchmark.unit,
            "figures": {name: list(values) for name, values in self.figures.items()},
            "ratios": {name: self.ratio(name) for name in self.figures},
            "targets": {name: self.verdict(name) for name in self.benchmark.targets},
            "best": self.best_ratio(),
            "missing": dict(self.missing),
        }


def build(benchmark: Benchmark, *, quick: bool) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps of the contenders installed, each made once, and why the others are missing."""
    steps, missing = {}, {}
    for name, build_step in benchmark.contenders.items():
        try:
            steps[name] = build_step(quick)
        except ImportError as error:
            missing[name] = f"{error}; pip install -e '.[bench]'"
    for step in steps.values():
        step()
    return steps, missing


def measure(benchmark: Benchmark, *, repeats: int, quick: bool = False) -> Measurement:
    """Runs the contenders in turn, `repeats` times, after one step that does not count.

    The machine's speed may change within seconds, and it does so for all of them.

    Args:
        benchmark: what to measure.
        repeats: how often, unless the benchmark needs fewer.
        quick: with the smallest sizes, to see that it runs.
    """
    steps, missing = build(benchmark, quick=quick)
    figures: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(min(repeats, benchmark.max_repeats or repeats)):
        for name, step in steps.items():
            figure, seconds = _run(step)
            milliseconds = 1000 * seconds / benchmark.units
            figures[name].append(milliseconds if figure is None else figure)
    return Measurement(benchmark, figures, missing)


def rate(step: Step, amount: float) -> Step:
    """A step whose figure is how much of `amount` a step of a program does in a second."""
    return lambda: amount / _run(step)[1]


def scaled(step: Step, factor: float) -> Step:
    """A step whose figure is its seconds times `factor`: one that does a known part of the work."""
    return lambda: factor * _run(step)[1]


def constant(figure: float) -> Step:
    """A step whose figure was found when it was built."""
    return lambda: figure


TABLE_HEAD = "| work | contender | median | ratio | target |\n|---|---|---|---|---|"


def table_rows(measurement: Measurement) -> str:
    """Lines of a Markdown table, one for each contender."""
    benchmark = measurement.benchmark
    lines = []
    for index, name in enumerate(benchmark.contenders):
        work = f"`{benchmark.name}` {benchmark.work}" if index == 0 else ""
        median = ratio = ""
        if name in measurement.missing:
            median = "not installed"
        else:
            median = _show(benchmark, statistics.median(measurement.figures[name]))
            if index and benchmark.is_relative:
                ratio = f"{measurement.ratio(name):.2f}"
        cells = (work, name, median, ratio, measurement.verdict(name))
        lines.append(f"| {' | '.join(cells)} |")
    if benchmark.best is not None:
        lines.append(_best_row(measurement, benchmark.best))
    return "\n".join(lines)


def _best_row(measurement, best):
    ratio = measurement.best_ratio()
    ours, theirs = measurement.fastest(best.ours), measurement.fastest(best.theirs)
    verdict = f"{best.target} with {best.needs}"
    if ratio is None:
        return f"|  | fastest: not installed |  |  | {verdict} |"
    if best.needs in computer.describe()["instruction_sets"]:
        verdict += ": met" if best.target.is_met(ratio, ratio) else ": missed"
    return f"|  | fastest: {theirs} beside {ours} |  | {ratio:.2f} | {verdict} |"


def _run(step):
    started = time.perf_counter()
    figure = step()
    return figure, time.perf_counter() - started


def _show(benchmark, figure):
    shown = f"{figure:.4g} {benchmark.unit}".strip()
    if benchmark.units_name:
        shown += f", {1000 / figure:.4g} {benchmark.units_name}/s"
    return shown
