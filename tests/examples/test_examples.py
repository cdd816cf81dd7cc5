"""Extensions in files of their own: what they compute, and that the command trains with them."""

import importlib
import re

import distrax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from command_line import ROOT, launch, logged
from scipy import integrate, stats

import sere_jax
from experiments import trained
from experiments.data import DATASETS, Dataset, load_dataset
from experiments.system.errors import UserError
from sere_jax.bijector import BIJECTORS
from sere_jax.data_layer import DATA_LAYERS, create_data_layer

pytestmark = pytest.mark.usefixtures("quick_compilation")

FILES = sorted((ROOT / "examples").glob("[!_]*.py"))
ALL_AT_ONCE = """
from examples import bijector, data_layer, dataset

def get_config(variant=""):
    config = dataset.get_config(variant)
    config.model.bijector = "lower_upper"
    config.model.data_layer = "continuous_bernoulli"
    return config
"""


@pytest.fixture(scope="module")
def entered():
    """The examples' entries, taken back afterwards: other tests go through the registries."""
    registries = (BIJECTORS, DATA_LAYERS, DATASETS)
    before = [dict(registry) for registry in registries]
    for file in FILES:
        importlib.import_module(f"examples.{file.stem}")
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def small_config(**overrides):
    shape = {"data_shape": (2, 3, 1), "num_layers": 3, "latent_shape": (2,), "hidden_size": 8}
    return sere_jax.ModelConfig(**shape | overrides)


def test_each_is_one_short_file():
    assert [file.stem for file in FILES] == ["bijector", "data_layer", "dataset"]
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 40


# ----------------------------------------------------------------------------------- bijector


def random_parameters(module, *inputs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(generator.normal(size=leaf.shape)), shapes)


@pytest.mark.parametrize("latent_shape", [(4,), (1,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "constant"])
def test_the_bijector_inverts_itself_and_knows_its_log_determinant(
    entered, latent_shape, conditional
):
    generator = np.random.default_rng(1)
    layer = BIJECTORS["lower_upper"](small_config(latent_shape=latent_shape, context=2))
    x = jnp.asarray(generator.normal(size=(3, *latent_shape)), jnp.float32)
    window = np.float32(generator.normal(size=(3, 2, *latent_shape))) if conditional else None
    bijector = layer.apply(random_parameters(layer, window), window)

    y, log_det = bijector.forward_and_log_det(x)
    back, inverse_log_det = bijector.inverse_and_log_det(y)

    assert isinstance(bijector, distrax.Bijector) and y.shape == x.shape
    jacobian = np.asarray(jax.jacobian(bijector.forward)(x), np.float64)
    for index in range(3):
        matrix = jacobian.reshape(3, x[0].size, 3, x[0].size)[index, :, index]
        expected = np.linalg.slogdet(matrix).logabsdet
        np.testing.assert_allclose(log_det[index], expected, rtol=1e-4, atol=1e-5)
        assert np.abs(matrix - np.eye(len(matrix))).max() > 0.05
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-4)


def test_the_guide_checks_a_bijector_and_finds_a_wrong_log_determinant(entered):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "WORKSPACE.md").read_text(), re.DOTALL)
    exec(code, {})

    wrong = code.replace("bijector.forward_and_log_det(ε[0])", "bijector.forward(ε[0]), 0.0")
    assert wrong != code
    with pytest.raises(AssertionError):
        exec(wrong, {})


# --------------------------------------------------------------------------------- data layer

LOGITS = (-300.0, -20.0, -1.0, -0.051, -0.049, 0.0, 1e-4, 0.3, 5.0, 40.0, 500.0)


@pytest.fixture
def layer(entered):
    return create_data_layer(small_config(data_layer="continuous_bernoulli"), (1, 2, 1))


@pytest.mark.parametrize("logit", LOGITS)
def test_the_density_integrates_to_one_and_has_the_mean_that_it_says(layer, logit):
    def density(x):
        return float(jnp.exp(layer.log_prob(jnp.float32(logit), jnp.float32(x))))

    points = [0.5, *(1 / max(abs(logit), 2) * k for k in (1, 5, 20))]
    points += [1 - point for point in points]
    points = [point for point in points if 0 < point < 1]
    total, _ = integrate.quad(density, 0, 1, points=points, epsabs=1e-4)
    mean, _ = integrate.quad(lambda x: x * density(x), 0, 1, points=points, epsabs=1e-4)

    assert total == pytest.approx(1, abs=1e-3)
    assert float(layer.mean(jnp.float32(logit))) == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize("logit", LOGITS)
def test_the_log_density_and_the_samples_are_those_of_a_truncated_exponential(layer, logit):
    """A continuous Bernoulli variable, or 1 minus it, is an exponential one truncated at 1."""
    rate = max(abs(logit), 1e-6)
    distribution = stats.truncexpon(b=rate, scale=1 / rate)

    def mirrored(x):
        return x if logit < 0 else 1 - x

    x = np.linspace(0, 1, 101, dtype=np.float32)
    log_prob = layer.log_prob(jnp.float32(logit), x)
    np.testing.assert_allclose(log_prob, distribution.logpdf(mirrored(x)), rtol=1e-4, atol=1e-4)

    samples = layer.sample(jnp.full((20_000, 1, 1), logit), jax.random.key(0))
    samples = np.asarray(samples, np.float64).ravel()
    assert samples.min() >= 0 and samples.max() <= 1
    # float32 rounds 1 - x.
    noise = np.random.default_rng(0).uniform(-3e-8, 3e-8, len(samples))
    assert stats.kstest(mirrored(samples + noise), distribution.cdf).pvalue > 1e-3


def test_gradients_are_finite_where_formulas_divide_by_zero(layer):
    for logit in (-0.05, 0.0, 0.05, 1e4, -1e4):
        gradient = jax.grad(lambda γ: layer.log_prob(γ, 0.3))(jnp.float32(logit))
        assert float(gradient) == pytest.approx(0.3 - float(layer.mean(jnp.float32(logit))))


def test_its_images_are_dequantized(entered):
    images = np.random.default_rng(0).integers(0, 17, (5, 2, 3, 1), np.uint8)
    keys = jax.random.split(jax.random.key(0), 5)
    model = sere_jax.create_model(small_config(data_layer="continuous_bernoulli"))
    x = sere_jax.to_data_space(model, images, keys, max_value=16)
    np.testing.assert_array_equal(np.floor(17 * x), images)


# ----------------------------------------------------------------------------------- data set


def load(**fields):
    return load_dataset(ml_collections.ConfigDict(fields))


def test_the_shapes_have_the_areas_of_discs_squares_and_diamonds(entered):
    dataset = load(name="shapes", validation_size=500)

    assert dataset.image_shape == (16, 16, 1)
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [4500, 500, 1000]
    images = dataset.train[..., 0] / 255
    widths = np.maximum(images.sum(axis=1).max(axis=1), images.sum(axis=2).max(axis=1))
    large = widths > 8
    ratios = images[large].sum(axis=(1, 2)) / (widths[large] / 2) ** 2
    kinds = [(abs(ratios - area) < 0.1 * area + 0.3).sum() for area in (2, np.pi, 4)]
    assert sum(kinds) == len(ratios)
    assert stats.chisquare(kinds).pvalue > 1e-3
    whole = np.concatenate([dataset.train, dataset.validation, dataset.test])
    assert len(np.unique(whole.reshape(6000, -1), axis=0)) == 6000


def test_a_run_recognizes_the_shapes(entered):
    assert load(name="shapes", validation_size=0.1).fingerprint == "c405e78e839779a6"


def test_the_names_of_new_data_sets_are_suggested(entered, tmp_path):
    with pytest.raises(UserError, match="no data set is called 'shape'.* shapes"):
        load(name="shape", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="allowed are digits, photos, npz, folder, shapes and"):
        load(name="")


@pytest.mark.parametrize(
    ("split", "images", "message"),
    [
        ("train", np.zeros((5, 4, 4, 1)), "'wrong' must be uint8 .* 'train' are float64"),
        ("test", np.zeros((5, 4, 4), np.uint8), "'test' are uint8, shape .5, 4, 4."),
        ("validation", np.full((5, 4, 4, 1), 2, np.uint8), "'validation' holds the value 2"),
    ],
)
def test_what_a_loader_must_not_return_is_refused(monkeypatch, split, images, message):
    arrays = dict.fromkeys(("train", "validation", "test"), np.zeros((5, 4, 4, 1), np.uint8))
    wrong = Dataset("wrong", **arrays | {split: images}, max_value=1)
    monkeypatch.setitem(DATASETS, "wrong", lambda config: wrong)

    with pytest.raises(UserError, match=message):
        load(name="wrong")


# ---------------------------------------------------------------------------------- the command

SHORT = (
    "--config.model.hidden_size=8",
    "--config.training.num_steps=2",
    "--config.evaluation.num_importance_samples=2",
    "--config.evaluation.num_examples=20",
    "--config.sampling.num_images=0",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bijector", "data_layer", "dataset", "all_at_once"])
def test_the_command_trains_with_each_and_its_model_can_be_loaded(entered, tmp_path, name):
    config = f"examples/{name}.py"
    if name == "all_at_once":
        config = tmp_path / "my_config.py"
        config.write_text(ALL_AT_ONCE)
    workdir = tmp_path / "run"

    launch(f"--workdir={workdir}", *SHORT, config=config)

    (record,) = (record for record in logged(workdir) if record["split"] == "train")
    assert record["step"] == 2 and np.isfinite(record["elbo"])
    model, params = trained.load(workdir)
    is_new = {"bijector": False, "data_layer": False, "dataset": False} | {name: True}
    is_new = dict.fromkeys(is_new, True) if name == "all_at_once" else is_new
    assert (model.config.bijector == "lower_upper") == is_new["bijector"]
    assert (model.config.data_layer == "continuous_bernoulli") == is_new["data_layer"]
    assert (model.config.data_shape == (16, 16, 1)) == is_new["dataset"]
    x = sere_jax.sample(model, params, jax.random.key(0), 2)
    assert x.shape == (2, *model.config.data_shape)
    assert np.isfinite(sere_jax.elbo(model, params, x, jax.random.key(1))).all()


def test_a_model_whose_file_is_not_imported_is_refused_by_its_name(monkeypatch):
    monkeypatch.delitem(BIJECTORS, "lower_upper", raising=False)
    with pytest.raises(sere_jax.ConfigError, match="bijector='lower_upper' is not one of"):
        sere_jax.create_model(small_config(bijector="lower_upper"))
