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
    folder, clone = tmp_path / "tutorial", tmp_path / "clone"
    clone.mkdir()
    for name in ("configs", "docs", "examples", "experiments", "sere_jax"):
        (clone / name).symlink_to(ROOT / name)
    before = set(clone.iterdir())
    variables = environment() | {"TUTORIAL_DIR": str(folder)}
    variables.pop("PYTHONPATH", None)
    del variables["JAX_DISABLE_MOST_OPTIMIZATIONS"]  # it trains for more than a moment
    finished = subprocess.run(
        [sys.executable, "-m", "docs.tutorial"],
        cwd=clone,
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
    pictures = {"samples.png", "reconstructions.png", "paths.png", "codes.png", "traversals.png"}
    assert names == {*pictures, "splines"}
    assert set(clone.iterdir()) == before
