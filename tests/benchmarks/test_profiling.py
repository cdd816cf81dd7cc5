"""Profiles of programs whose instructions are known."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import profiling
from benchmarks.harness import Benchmark
from benchmarks.production import until_ready

pytestmark = pytest.mark.slow

LENGTH = 7


@jax.jit
def repeated_products(matrix):
    return jax.lax.scan(lambda x, _: (matrix @ x, None), matrix, length=LENGTH)[0]


def products(quick):
    return until_ready(repeated_products, jnp.eye(300 if quick else 400))


def longest(profile):
    """The products, whatever XLA calls them."""
    return max(profile.milliseconds, key=profile.milliseconds.get)


def test_the_instructions_of_a_scan_are_counted_and_not_the_scan_itself():
    step = products(quick=True)
    step()

    profile = profiling.profile(step, units=2)

    assert profile.calls[longest(profile)] == LENGTH / 2
    assert "while" not in profile.calls


def test_contenders_without_a_program_of_jax_are_left_out():
    def absent(quick):
        raise ImportError("No module named 'absent'")

    def nothing(quick):
        return lambda: None

    contenders = {"ours": products, "absent": absent, "nothing": nothing}
    benchmark = Benchmark("name", "the work", contenders, units=LENGTH)

    ((name, profile),) = profiling.profile_contenders(benchmark, quick=True)

    assert name == "ours" and profile.calls[longest(profile)] == pytest.approx(1.0)


def test_the_table_has_the_longest_first_and_sums_up_the_others():
    kinds = {f"kind{index}": float(index) for index in range(1, profiling.SHOWN + 3)}
    lines = profiling.Profile(kinds, dict.fromkeys(kinds, 2.0)).as_table().splitlines()

    total = sum(kinds.values())
    most = profiling.SHOWN + 2
    assert lines[2] == f"| kind{most} | {most:.1f} | {most / total:.0%} | 2 |"
    assert len(lines) == 2 + profiling.SHOWN + 2
    assert lines[-2] == f"| 2 others | 3.0 | {3 / total:.0%} | 4 |"
    assert lines[-1] == f"| all | {total:.1f} | | {2 * len(kinds)} |"
