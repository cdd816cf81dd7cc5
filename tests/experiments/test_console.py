"""Output that nobody reads, or that the locale cannot write, fails no program."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import sys, time
from experiments.system import console
console.make_robust()
print("first", flush=True)
sys.stdin.read()
for stream in (sys.stdout, sys.stderr):
    print("7.94 ± 0.02 ünï \\udc80" * 100_000, file=stream)
    print("last", file=stream)
raise SystemExit(int(sys.argv[1]))
"""


def start(code, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(code)], cwd=ROOT, stdin=subprocess.PIPE, **options
    )


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("both", [False, True])
def test_a_pipe_that_is_closed_early_changes_no_exit_code(code, both):
    with start(code, **({"stderr": subprocess.STDOUT} if both else {})) as process:
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stdin.close()
        if not both:
            assert process.stderr.read().endswith(b"last\n")
    assert process.returncode == code


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(encoding):
    with start(0, env={**os.environ, "PYTHONIOENCODING": encoding}) as process:
        for output in process.communicate():
            line = output.decode(encoding).splitlines()[-2]
            expected = "7.94 ± 0.02 ünï \udc80".encode(encoding, "backslashreplace")
            assert line == expected.decode(encoding) * 100_000
    assert process.returncode == 0


def test_closed_streams_are_none_at_all():
    command = [sys.executable, "-c", PROGRAM, "3"]
    finished = subprocess.run(
        ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], cwd=ROOT, stdin=subprocess.DEVNULL
    )
    assert finished.returncode == 3
