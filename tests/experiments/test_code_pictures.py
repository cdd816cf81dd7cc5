"""What pictures of codes and completions show, taken before it is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from experiments.reporting import code_pictures

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(3)
SYSTEMS = {
    "sere_vae": {"num_layers": 2, "latent_shape": (4,)},
    "maps": {
        "num_layers": 4,
        "latent_shape": (2, 2, 1),
        "network": "resnet",
        "partition": "checkerboard",
    },
    "ladder_vae": {"num_layers": 2, "latent_shape": (4,), "latent_sizes": (4, 3)},
    "relaxed_bernoulli_vae": {"num_layers": 1, "latent_shape": (7,)},
}


def create(name):
    system = {} if name == "maps" else {"system": name}
    model = sere_jax.create_model(
        sere_jax.ModelConfig(data_shape=(4, 4, 1), hidden_size=8, **SYSTEMS[name], **system)
    )
    params = jax.tree.map(lambda leaf: leaf + 0.05, sere_jax.init(model, KEY))
    x = jax.random.bernoulli(KEY, 0.5, (9, 4, 4, 1)).astype(jnp.float32)
    return model, params, x


@pytest.fixture
def drawn(monkeypatch):
    """Rows of each sheet by the name of its file."""
    sheets = {}
    draw = lambda rows, path: sheets.setdefault(path.name, rows)  # noqa: E731
    monkeypatch.setattr("experiments.reporting.sheets.save_comparison", draw)
    return sheets


def by_place(z, name):
    """Values over images of each code, by its name in the sheet."""
    layers = z if name == "ladder_vae" else np.moveaxis(z, 1, 0)
    layers = [z] if name == "relaxed_bernoulli_vae" else layers
    return {
        f"layer {layer}: {', '.join(str(i + 1) for i in place)}": np.asarray(codes)[:, *place]
        for layer, codes in enumerate(layers, 1)
        for place in np.ndindex(codes.shape[1:])
    }


def both_ends(model, params, x, codes, place, name):
    """The first image with a code two deviations below its mean and above."""
    layer, index = place.removeprefix("layer ").split(": ")
    index = tuple(int(i) - 1 for i in index.split(", "))
    ends = codes[place].mean() + codes[place].std() * np.array([-2.0, 2.0])
    if name == "relaxed_bernoulli_vae":
        ends = np.clip(ends, 1e-3, 1 - 1e-3)
    return sere_jax.traverse(model, params, x[0], int(layer) - 1, index, ends, KEY, expected=True)


def change(model, params, x, codes, place, name):
    low, high = np.asarray(both_ends(model, params, x, codes, place, name))
    return np.abs(high - low).mean()


@pytest.mark.parametrize("name", SYSTEMS)
def test_traversals_are_of_the_codes_that_change_an_image_most(tmp_path, drawn, name):
    model, params, x = create(name)
    num = model.config.num_layers
    kl = np.where(np.arange(num) == 0, 0.05, 5.0) if num > 1 else np.array([0.01])
    code_pictures.save_traversals(model, params, x, KEY, None, kl, tmp_path)
    rows = drawn["traversals.png"]

    codes = by_place(sere_jax.encode(model, params, x), name)
    in_use = [place for place in codes if num == 1 or not place.startswith("layer 1:")]
    changes = {place: change(model, params, x, codes, place, name) for place in in_use}
    assert set(rows) == set(sorted(changes, key=changes.get)[-6:])
    assert {images.shape for images in rows.values()} == {(8, 4, 4, 1)}
    place = next(iter(rows))
    ours = both_ends(model, params, x, codes, place, name)
    np.testing.assert_allclose(rows[place][[0, -1]], ours, atol=1e-5)


@pytest.mark.parametrize("name", ["sere_vae", "ladder_vae"])
def test_completions_keep_the_upper_half_and_differ_below(tmp_path, drawn, name):
    model, params, x = create(name)
    code_pictures.save_completions(model, params, x, KEY, None, 2, tmp_path)
    rows = drawn["completions.png"]
    assert list(rows) == ["original", "observed", "drawn, 1", "drawn, 2", "drawn, 3"]
    np.testing.assert_array_equal(rows["original"], x[:8])
    assert np.all(rows["observed"][:, 2:] == 0.5)
    for images in list(rows.values())[1:]:
        np.testing.assert_array_equal(images[:, :2], x[:8, :2])
    lower = [rows[f"drawn, {way}"][:, 2:] for way in (1, 2, 3)]
    assert not np.array_equal(lower[0], lower[1]) and not np.array_equal(lower[1], lower[2])


@pytest.mark.parametrize("width", [1, 5])
def test_completions_of_one_row_keep_its_left_half(tmp_path, drawn, width):
    config = sere_jax.ModelConfig(
        data_shape=(1, width, 1), num_layers=1, latent_shape=(2,), hidden_size=8
    )
    model = sere_jax.create_model(config)
    x = jax.random.bernoulli(KEY, 0.5, (3, 1, width, 1)).astype(jnp.float32)
    code_pictures.save_completions(model, sere_jax.init(model, KEY), x, KEY, None, 2, tmp_path)
    if width == 1:
        assert drawn == {}
        return
    rows = drawn["completions.png"]
    np.testing.assert_array_equal(rows["drawn, 2"][:, :, :2], x[:, :, :2])
    assert np.all(rows["observed"][:, :, 2:] == 0.5)


def test_flows_have_no_completions(tmp_path, drawn):
    config = sere_jax.ModelConfig(
        data_shape=(4, 4, 1), num_layers=2, latent_shape=(2,), hidden_size=8, flow_hidden_size=8,
        data_layer="masked_autoregressive_flow",
    )  # fmt: skip
    model = sere_jax.create_model(config)
    params = sere_jax.init(model, KEY)
    x = jnp.zeros((9, 4, 4, 1))
    code_pictures.save_completions(model, params, x, KEY, None, 2, tmp_path)
    assert drawn == {}
