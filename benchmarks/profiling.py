"""Where the time of a step goes, by kind of instruction of the compiled program."""

import collections
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping

import jax
from jax.profiler import ProfileData

from benchmarks import harness
from benchmarks.harness import Benchmark, Step

CONTAINERS = ("while", "call", "conditional")  # their time is that of the instructions in them
SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Profile:
    """Time of the instructions in a unit of work; those on different cores run at once.

    Attributes:
        milliseconds: by kind of instruction, summed over the cores.
        calls: how many instructions of the kind ran.
    """

    milliseconds: Mapping[str, float]
    calls: Mapping[str, float]

    def as_table(self) -> str:
        """Lines of a Markdown table, the kinds that take longest first."""
        total = sum(self.milliseconds.values())
        kinds = sorted(self.milliseconds, key=lambda kind: self.milliseconds[kind], reverse=True)
        lines = ["| kind of instruction | ms | share | calls |", "|---|---|---|---|"]
        lines += [
            f"| {kind} | {self.milliseconds[kind]:.1f} "
            f"| {self.milliseconds[kind] / total:.0%} | {self.calls[kind]:.0f} |"
            for kind in kinds[:SHOWN]
        ]
        rest = kinds[SHOWN:]
        milliseconds = sum(self.milliseconds[kind] for kind in rest)
        lines.append(
            f"| {len(rest)} others | {milliseconds:.1f} | {milliseconds / total:.0%} "
            f"| {sum(self.calls[kind] for kind in rest):.0f} |"
        )
        lines.append(f"| all | {total:.1f} | | {sum(self.calls.values()):.0f} |")
        return "\n".join(lines)


def profile(step: Step, units: int = 1) -> Profile:
    """Runs a step of a compiled program once under JAX's profiler.

    Args:
        step: has run before, so that nothing is compiled in it.
        units: how much work it does; times and calls are divided by it.
    """
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            step()
        (path,) = pathlib.Path(directory).rglob("*.xplane.pb")
        instructions = list(_instructions(ProfileData.from_file(str(path))))
    milliseconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    calls: collections.defaultdict[str, float] = collections.defaultdict(float)
    for name, nanoseconds in instructions:
        kind = re.sub(r"(\.\w+)*$", "", name)
        milliseconds[kind] += nanoseconds / 1e6 / units
        calls[kind] += 1 / units
    return Profile(milliseconds, calls)


def profile_contenders(
    benchmark: Benchmark, *, quick: bool = False
) -> Iterator[tuple[str, Profile]]:
    """The profile of each contender that JAX runs, by name."""
    steps, _ = harness.build(benchmark, quick=quick)
    for name, step in steps.items():
        measured = profile(step, benchmark.units)
        if measured.calls:
            yield name, measured


def _instructions(data: ProfileData) -> Iterator[tuple[str, float]]:
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name and event.name == name and not name.startswith(CONTAINERS):
                    yield name, event.duration_ns
