"""The tutorial, as its readers run it."""

import re
import subprocess
import sys

import pytest
from command_line import ROOT, environment

pytestmark = pytest.mark.slow

TUTORIAL = ROOT / "docs" / "tutorial.py"


def numbers(pattern, text):
    (match,) = re.finditer(pattern, text)
    return [float(number) for number in match.groups()]


def test_the_tutorial_does_what_it_says_and_writes_where_it_is_told(tmp_path):
    folder, cwd = tmp_path / "tutorial", tmp_path / "cwd"
    cwd.mkdir()
    variables = environment() | {"PYTHONPATH": str(ROOT), "TUTORIAL_DIR": str(folder)}
    del variables["JAX_DISABLE_MOST_OPTIMIZATIONS"]  # it trains for more than a moment
    finished = subprocess.run(
        [sys.executable, TUTORIAL],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=900,
    )

    assert finished.returncode == 0, finished.stderr
    shown = finished.stdout
    first, last = numbers(r"ELBO (-[\d.]+) nats at first, (-[\d.]+) in the end", shown)
    assert first + 8 < last < -15
    negative_elbo, nll = numbers(r"-ELBO ([\d.]+) nats, -log p\(x\) ([\d.]+) nats", shown)
    assert 15 < nll < negative_elbo < 27
    (loaded,) = numbers(r"-ELBO of the loaded model: ([\d.]+) nats", shown)
    assert nll < loaded < 30
    names = {path.name for path in folder.iterdir()}
    assert names == {"samples.png", "reconstructions.png", "paths.png", "splines"}
    assert list(cwd.iterdir()) == []
