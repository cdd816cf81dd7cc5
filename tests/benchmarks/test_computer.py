"""What figures say of the computer."""

import importlib.metadata
import json
import os

import jax
import pytest

from benchmarks import computer

CPU_INFO = """processor\t: 0
model name\t: Model A @ 2.1GHz: fast
flags\t\t: fpu sse2 avx2 avx512f amx_tile amx_bf16

processor\t: 1
model name\t: Model B
flags\t\t: fpu
"""


def test_the_first_processor_counts():
    model, instruction_sets = computer.read_cpu_info(CPU_INFO)
    assert model == "Model A @ 2.1GHz: fast"
    assert instruction_sets == ["avx2", "avx512f", "amx_bf16"]


def test_without_a_list_of_the_kernel_the_platform_is_named(monkeypatch):
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert computer.read_cpu_info("") == ("arm64", [])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_cores_are_those_that_the_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert computer.describe()["cores"] == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_line_has_all_that_the_record_has(monkeypatch):
    monkeypatch.setattr(computer, "VERSIONS", ("jax", "no_such_package"))
    described = json.loads(json.dumps(computer.describe()))
    line = computer.as_line(described)
    expected = [described["cpu"], described["date"], *described["instruction_sets"]]
    expected += [f"jax {importlib.metadata.version('jax')}", "no_such_package not installed"]
    expected.append(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    assert [part for part in expected if part not in line] == []
