"""The tutorial, as its readers run it: as a notebook where Jupyter is, else as a script."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from command_line import ROOT, environment

pytestmark = pytest.mark.slow

HAS_JUPYTER = importlib.util.find_spec("jupytext") and importlib.util.find_spec("ipykernel")


def numbers(pattern, text):
    (match,) = re.finditer(pattern, text)
    return [float(number) for number in match.groups()]


def run_script(folder):
    return [sys.executable, "-m", "docs.tutorial"], lambda finished: finished.stdout


def run_notebook(folder):
    path = folder.parent / "tutorial.ipynb"
    options = ["--set-kernel", "python3", "--to", "ipynb", "--execute", "--run-path", "."]
    command = [sys.executable, "-m", "jupytext", *options, "--output", path, "docs/tutorial.py"]
    return command, lambda _: "".join(text for text in printed(json.loads(path.read_text())))


def printed(notebook):
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output.get("name") == "stdout":
                yield "".join(output["text"])


def test_the_notebook_is_the_script_with_its_outputs():
    jupytext = pytest.importorskip("jupytext")
    script, notebook = (jupytext.read(ROOT / "docs" / f"tutorial.{end}") for end in ("py", "ipynb"))

    def sources(cells):
        return [(cell["cell_type"], cell["source"]) for cell in cells]

    assert sources(notebook["cells"]) == sources(script["cells"])
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert "-ELBO of the loaded model" in "".join(printed(notebook))


def test_the_tutorial_does_what_it_says_and_writes_where_it_is_told(tmp_path):
    folder, clone = tmp_path / "tutorial", tmp_path / "clone"
    clone.mkdir()
    for name in ("configs", "docs", "examples", "experiments", "sere_jax"):
        (clone / name).symlink_to(ROOT / name)
    before = set(clone.iterdir())
    variables = environment() | {"TUTORIAL_DIR": str(folder)}
    variables.pop("PYTHONPATH", None)
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
        del variables[name]  # it trains for more than a moment
    command, read = (run_notebook if HAS_JUPYTER else run_script)(folder)
    finished = subprocess.run(
        command,
        cwd=clone,
        env=variables,
        capture_output=True,
        text=True,
        timeout=900,
    )

    assert finished.returncode == 0, finished.stderr
    shown = read(finished)
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
