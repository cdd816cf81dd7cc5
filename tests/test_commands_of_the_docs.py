"""The launches of README and docs, run as they are written but for their length and size."""

import re
import shlex
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from command_line import ROOT, environment

pytestmark = pytest.mark.slow

SHORT = (
    "--config.model.hidden_size=8 --config.training.num_steps=2 --config.sampling.num_images=0 "
    "--config.evaluation.num_importance_samples=2 --config.evaluation.num_examples=10 "
    "--config.sampling.completion_steps=0"
)
LAUNCH = re.compile(r"^ *(?:pip .* && )?((?:[A-Z_]+=\S+ )?python -m experiments\.main --\S.*)$")
NOT_HERE = ("[", "--distributed", "results/")  # a synopsis; a cluster; kept weights, on MNIST


def launches():
    """The commands in their order, each once; those that end with & go with the next one."""
    together, seen = [], set()
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for line in "\n".join(page.read_text() for page in pages).splitlines():
        found = LAUNCH.match(line)
        if found and found[1] not in seen and not any(part in found[1] for part in NOT_HERE):
            seen.add(found[1])
            together.append(found[1])
            if not line.endswith("&"):
                yield together
                together = []


COMMANDS = list(launches())


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks like a clone, so that the runs are not left in the genuine one."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "examples", "experiments", "sere_jax"):
        (folder / name).symlink_to(ROOT / name)
    generator = np.random.default_rng(0)
    for name, shape in {"mine": (16, 16), "colours": (32, 32, 3)}.items():
        images = generator.integers(0, 256, (300, *shape), np.uint8)
        np.savez(folder / f"{name}.npz", train=images)
    (folder / "photos").mkdir()
    for index, image in enumerate(images):
        PIL.Image.fromarray(image).resize((50, 40)).save(folder / "photos" / f"{index}.jpg")
    (folder / "large").mkdir()
    np.save(folder / "large" / "train.npy", images)
    return folder


def test_there_are_as_many_as_the_pages_have():
    assert [len(together) for together in COMMANDS] == [1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("commands", COMMANDS, ids=lambda commands: commands[-1].split("main ")[1])
def test_it_runs(clone, commands):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = ""
    for command in commands:
        own = command.removesuffix("&").rstrip().replace("localhost:12345", f"localhost:{port}")
        own = own.replace("python", shlex.quote(sys.executable), 1)
        if "--workdir" not in own:  # it would be named after what makes the run short
            own += f" --workdir=runs/{re.search(r'/([a-z]+)[.]py', own)[1]}"
        length = "--config.training.num_steps=4" if "--extend" in own else ""
        script += own if "--mode=" in own else f"{own} {SHORT} {length}"
        script += " & " if command.endswith("&") else ""
    before = set(clone.glob("runs/*/*"))

    finished = subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert finished.returncode == 0, finished.stderr
    written = {path.name for path in set(clone.glob("runs/*/*")) - before}
    assert written_by(script) <= written


def written_by(script):
    """Names of files that the script adds to a run."""
    if "--mode=sample" in script:
        return {"samples.npz"}
    if "--mode=export" in script:
        return {"model.safetensors"}
    return {"continuations.json"} if "--extend" in script else {"report.html", "results.json"}


def test_the_python_of_the_recipes_runs(clone):
    """After the commands, which have trained the models that it loads."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    checks = """
assert completed.shape == (10, 8, 8, 1) and (completed[:, :4] == x[:10, :4]).all()
assert features.shape == (len(x), 4 * 8), features.shape
assert (np.diff(surprise[np.argsort(-surprise)]) <= 0).all()
assert images.shape == (16, 8, 8, 1)
"""
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks) + checks],
        cwd=clone,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert finished.returncode == 0, finished.stderr
    assert {"completed.png", "traversal.png"} <= {path.name for path in clone.iterdir()}
