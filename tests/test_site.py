"""The documentation as a site."""

import os
import pathlib
import subprocess
import sys

import pytest
from command_line import ROOT

import sere_jax

pytestmark = pytest.mark.slow


def test_it_has_every_page_the_tutorial_and_the_reference(tmp_path):
    for module in ("mkdocs", "mkdocs_jupyter", "material", "pdoc"):
        pytest.importorskip(module)
    variables = {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    build = [ROOT / "docs" / "build_site", tmp_path / "site"]
    finished = subprocess.run(build, env=os.environ | variables, capture_output=True, text=True)

    assert finished.returncode == 0, finished.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    site = tmp_path / "site"
    assert pages == {path.name for path in (site / "docs").iterdir()} & pages
    assert "image/png;base64" in (site / "docs" / "tutorial" / "index.html").read_text()
    reference = (site / "api" / "sere_jax.html").read_text()
    assert all(f'id="{name}"' in reference for name in sere_jax.__all__)
    assert "results/mnist/mlp/results.json" in (site / "RESULTS" / "index.html").read_text()
