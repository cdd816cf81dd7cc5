"""The harness with contenders whose times are known, and the benchmarks at their smallest sizes."""

import itertools
import json

import pytest

from benchmarks import flows, harness, sampling
from benchmarks.harness import Benchmark


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what steps add to it."""
    now = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])
    return now


def absent(quick):
    raise ImportError("No module named 'absent'")


def contender(clock, seconds):
    durations = itertools.cycle(seconds)

    def build(quick):
        def step():
            clock[0] += next(durations)

        return step

    return build


def benchmark(contenders):
    return Benchmark("name", "the work", "the target", contenders)


def test_ratios_are_medians_over_repeats_in_turns(clock):
    # The machine is three times slower in the second repeat, for both.
    ours = contender(clock, [9.0, 1.0, 3.0, 1.0])
    theirs = contender(clock, [9.0, 2.0, 6.0, 2.5])

    measured = harness.measure(benchmark({"ours": ours, "theirs": theirs}), repeats=3)

    assert list(measured.seconds["ours"]) == [1.0, 3.0, 1.0]
    assert measured.ratio("theirs") == 2.0 and measured.ratio("ours") == 1.0
    assert "| the work | ours | 1000.0 |  | the target |" in harness.table([measured])
    assert "|  | theirs | 2500.0 | 2.00 |  |" in harness.table([measured])


def test_times_are_those_of_a_unit_of_work(clock):
    work = harness.Benchmark("n", "w", "t", {"ours": contender(clock, [6.0])}, units=3)
    assert list(harness.measure(work, repeats=1).seconds["ours"]) == [2.0]


def test_a_contender_that_is_not_installed_is_left_out(clock):
    measured = harness.measure(
        benchmark({"ours": contender(clock, [1.0]), "absent": absent}), repeats=2
    )

    assert "|  | absent | not installed |" in harness.table([measured])
    record = json.loads(json.dumps(measured.as_json()))
    assert list(record["seconds"]) == ["ours"] and record["ratios"] == {"ours": 1.0}
    assert "No module named 'absent'" in record["missing"]["absent"]


@pytest.mark.parametrize("name", ["ours", "flowjax"])
def test_the_steps_of_flows_run(quick_compilation, name):
    step = flows.MAF_10.contenders[name](quick=True)
    step()
    step()


@pytest.mark.parametrize("name", sampling.SAMPLING.contenders)
def test_samplers_run(quick_compilation, name):
    sampling.SAMPLING.contenders[name](quick=True)()
