"""The wheel is the library alone, and works where there is nothing else of the project."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from command_line import ROOT, environment

pytestmark = pytest.mark.slow

# What `[experiments]` installs and the library's own dependencies do not.
NOT_OF_THE_LIBRARY = ["matplotlib", "ml_collections", "sklearn", "tensorboardX", "tqdm"]

PROGRAM = f"""
import sys


class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_OF_THE_LIBRARY + ["experiments", "configs"]}:
            raise ImportError(f"the library imports {{name}}")


sys.meta_path.insert(0, Refusal())

import jax
import jax.numpy as jnp
import optax

import sere_jax

model = sere_jax.create_model(
    sere_jax.ModelConfig(data_shape=(4, 4, 1), num_layers=2, latent_shape=(2,), hidden_size=8)
)
params = sere_jax.init(model, jax.random.key(0))
x = jnp.tile(jnp.eye(4)[None, :, :, None], (16, 1, 1, 1))
optimizer = optax.adam(1e-2)
state = optimizer.init(params)


@jax.jit
def train_step(params, state, key):
    def loss(params):
        return -jnp.mean(sere_jax.elbo(model, params, x, key))

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, value


losses = []
for step in range(200):
    params, state, value = train_step(params, state, jax.random.key(step))
    losses.append(float(value))
assert losses[-1] < 0.2 * losses[0], losses[::20]

sere_jax.save_pretrained("trained", model, params)
loaded, loaded_params = sere_jax.load_pretrained("trained")
likelihoods = [
    sere_jax.log_likelihood(m, p, x[:2], jax.random.key(9), 10)
    for m, p in ((model, params), (loaded, loaded_params))
]
assert jnp.array_equal(*likelihoods), likelihoods
print(sere_jax.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the build leaves nothing in the clone."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "sere_jax", source / "sere_jax")
    for name in ("configs", "experiments"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", directory, source], check=True)
    (path,) = directory.glob("*.whl")
    return path


def test_it_holds_the_library_alone_with_its_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sere_jax"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sere_jax").rglob("*.py")}
    assert modules | {"sere_jax/py.typed"} <= set(names)


@pytest.mark.parametrize("has_configs", [False, True])
def test_one_trains_saves_and_loads_in_any_folder(wheel, tmp_path, has_configs):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    folder = tmp_path / "project"
    folder.mkdir()
    if has_configs:  # of another project
        (folder / "configs").mkdir()
        (folder / "configs" / "__init__.py").write_text("raise ImportError('not yours')")
    (folder / "program.py").write_text(PROGRAM)
    finished = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(str(tmp_path / "installed"))
