"""The settings of malloc are made before JAX is imported."""

import pathlib
import subprocess
import sys

SCRIPT = """
import runpy, sys
from experiments.system import host_memory
host_memory.keep_freed_memory = lambda: print("jax" in sys.modules)
sys.argv = ["main", "--help"]
runpy.run_module("experiments.main", run_name="__main__")
"""


def test_the_command_keeps_freed_memory_before_it_imports_jax():
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("False\n")
