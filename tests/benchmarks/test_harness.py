"""The harness with contenders whose figures are known, and some benchmarks at their smallest."""

import itertools
import json
import runpy

import pytest

from benchmarks import computer, harness, programs, suite
from benchmarks.harness import Benchmark, Best, Target


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


def benchmark(contenders, **fields):
    return Benchmark("name", "the work", contenders, **fields)


def test_ratios_are_medians_over_repeats_in_turns(clock):
    # The machine is three times slower in the second repeat, for both.
    ours = contender(clock, [9.0, 1.0, 3.0, 1.0])
    theirs = contender(clock, [9.0, 2.0, 6.0, 2.5])

    measured = harness.measure(benchmark({"ours": ours, "theirs": theirs}), repeats=3)

    assert list(measured.figures["ours"]) == [1000.0, 3000.0, 1000.0]
    assert measured.ratio("theirs") == 2.0 and measured.ratio("ours") == 1.0
    assert "| `name` the work | ours | 1000 ms |  |  |" in harness.table_rows(measured)
    assert "|  | theirs | 2500 ms | 2.00 |  |" in harness.table_rows(measured)


def test_times_and_rates_are_those_of_a_unit_of_work(clock):
    work = benchmark({"ours": contender(clock, [6.0])}, units=3, units_name="images")
    measured = harness.measure(work, repeats=1)
    assert list(measured.figures["ours"]) == [2000.0]
    assert "2000 ms, 0.5 images/s" in harness.table_rows(measured)


def test_a_step_may_have_a_figure_of_its_own(clock):
    fixed = benchmark({"count": lambda quick: harness.constant(3.0)}, unit="MB")
    assert list(harness.measure(fixed, repeats=2).figures["count"]) == [3.0, 3.0]

    def rate(quick):
        return harness.rate(contender(clock, [4.0])(quick), 12.0)

    assert list(harness.measure(benchmark({"rate": rate}), repeats=1).figures["rate"]) == [3.0]


def test_no_more_repeats_than_are_of_use(clock):
    work = benchmark({"ours": contender(clock, [1.0])}, max_repeats=2)
    assert len(harness.measure(work, repeats=5).figures["ours"]) == 2
    assert len(harness.measure(work, repeats=1).figures["ours"]) == 1


def test_a_contender_that_is_not_installed_is_left_out(clock):
    contenders = {"ours": contender(clock, [1.0]), "absent": absent}
    work = benchmark(contenders, targets={"absent": Target(">=", 2)})
    measured = harness.measure(work, repeats=2)

    assert "|  | absent | not installed |  | >= 2 x |" in harness.table_rows(measured)
    record = json.loads(json.dumps(measured.as_json()))
    assert list(record["figures"]) == ["ours"] and record["ratios"] == {"ours": 1.0}
    assert "No module named 'absent'" in record["missing"]["absent"]


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target(">=", 2.5), ">= 2.5 x: met"),
        (Target("<=", 2.4), "<= 2.4 x: missed"),
        (Target("<", 4, "s"), "< 4 s: missed"),
        (Target("=", 5, ""), "= 5: met"),
    ],
)
def test_targets_are_of_the_ratio_or_of_the_figure(target, verdict):
    contenders = {
        "first": lambda quick: harness.constant(2.0),
        "second": lambda quick: harness.constant(5.0),
    }
    work = benchmark(contenders, targets={"second": target}, unit="s", is_relative=False)
    measured = harness.measure(work, repeats=1)
    assert f"|  | second | 5 s |  | {verdict} |" in harness.table_rows(measured)
    assert measured.as_json()["targets"] == {"second": verdict}


BEST = Best(("a", "b"), ("c", "d", "absent"), Target(">=", 1.5), needs="amx_bf16")


@pytest.mark.parametrize(
    ("instruction_sets", "verdict"),
    [(["avx2", "amx_bf16"], ">= 1.5 x with amx_bf16: met"), (["avx2"], ">= 1.5 x with amx_bf16")],
)
def test_the_fastest_of_ours_beside_the_fastest_of_theirs(
    clock, monkeypatch, instruction_sets, verdict
):
    monkeypatch.setattr(computer, "describe", lambda: {"instruction_sets": instruction_sets})
    seconds = {"a": 5.0, "b": 4.0, "c": 9.0, "d": 8.0}
    contenders = {name: contender(clock, [value]) for name, value in seconds.items()}
    work = benchmark({**contenders, "absent": absent}, best=BEST)
    measured = harness.measure(work, repeats=2)

    assert measured.as_json()["best"] == 2.0
    (*_, last) = harness.table_rows(measured).splitlines()
    assert last == f"|  | fastest: d beside b |  | 2.00 | {verdict} |"


def test_there_is_no_fastest_where_a_side_is_missing(clock):
    contenders = {"a": contender(clock, [1.0]), "absent": absent}
    measured = harness.measure(benchmark(contenders, best=BEST), repeats=1)
    assert measured.as_json()["best"] is None


def test_benchmarks_are_chosen_by_name_or_kind():
    assert suite.choose(None) == list(suite.BENCHMARKS)
    assert [b.name for b in suite.choose("resnet_step:small")] == ["resnet_step:small"]
    assert {b.name for b in suite.choose("memory")} == {"memory:training", "memory:evaluation"}
    assert suite.choose("nothing") == []


# All of them take minutes: `python -m benchmarks --quick`.
CONTENDERS = [
    ("mlp_step", "ours"),
    ("systems", "sere_iaf"),
    ("systems", "ladder"),
    ("importance_weighted", "ours"),
    ("importance_weighted", "encoders in the loop"),
    ("resnet_step:small", "unrolled"),
    ("maf10_step", "ours"),
    ("maf10_step", "flowjax"),
    ("sampling", "MAF-10"),
    ("collectives", "mnist_mlp"),
    ("start_up", "--help"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("benchmark_name", "name"), CONTENDERS)
def test_the_steps_of_contenders_run(quick_compilation, monkeypatch, benchmark_name, name):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in processes that steps start
    (chosen,) = suite.choose(benchmark_name)[:1]
    step = chosen.contenders[name](quick=True)
    step()
    figure = step()
    assert figure is None or figure > 0


def test_all_targets_are_of_contenders():
    for chosen in suite.BENCHMARKS:
        assert set(chosen.targets) <= set(chosen.contenders)
        if chosen.best is not None:
            assert {*chosen.best.ours, *chosen.best.theirs} <= set(chosen.contenders)
            assert chosen.best.needs in computer.INSTRUCTION_SETS


def test_all_reduces_are_counted_where_they_are_done_for_every_update():
    program = """HloModule jit_f

%body (p: f32[]) -> f32[] {
  %all-reduce.1 = f32[] all-reduce(%p), to_apply=%add
  %all-reduce.2 = (f32[]) all-reduce-start(%all-reduce.1), to_apply=%add
}

ENTRY %main (p: f32[]) -> f32[] {
  %all-reduce.3 = f32[] all-reduce(%p), to_apply=%add
}
"""
    assert programs.count_all_reduces(program) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=nothing"], "--only='nothing' is not one of"),
        (["--repeats=0"], "--repeats=0 must be at least 1"),
        (["--profile", "--repeats=2"], "leave out --repeats"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    monkeypatch.setattr("experiments.system.host_memory.keep_freed_memory", lambda: None)
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    with pytest.raises(SystemExit):
        runpy.run_module("benchmarks", run_name="__main__")
    assert message in capsys.readouterr().err
