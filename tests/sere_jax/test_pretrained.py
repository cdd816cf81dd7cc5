"""Models in a folder: what comes back, and what is wrong with a folder."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import yaml

import sere_jax
from sere_jax import ConfigError, ModelConfig
from sere_jax.model_card import CARD_FILE
from sere_jax.pretrained import CONFIG_FILE, PARAMETERS_FILE, read_parameters

CONFIGS = {
    "mlp": ModelConfig(data_shape=(4, 4, 1), num_layers=3, latent_shape=(2,), hidden_size=8),
    "resnet": ModelConfig(
        data_shape=(4, 4, 3),
        num_layers=4,
        latent_shape=(2, 2, 1),
        hidden_size=4,
        network="resnet",
        partition="checkerboard",
        data_layer="discretized_logistic_mixture",
    ),
    "flow": ModelConfig(
        data_shape=(2, 3, 1),
        num_layers=1,
        latent_shape=(0,),
        couple_data=False,
        data_layer="masked_autoregressive_flow",
        num_flows=2,
        flow_hidden_size=8,
        flow_direct_connections=True,
    ),
    "ladder_vae": ModelConfig(
        data_shape=(4, 4, 1), num_layers=2, latent_shape=(3,), hidden_size=8, system="ladder_vae"
    ),
}


def create(name):
    model = sere_jax.create_model(CONFIGS[name])
    return model, sere_jax.init(model, jax.random.key(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, params = create("mlp")
    folder = tmp_path_factory.mktemp("saved")
    sere_jax.save_pretrained(folder, model, params, {"epochs": 3, "data": "digits"})
    return folder, model, params


@pytest.fixture
def copy(saved, tmp_path):
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_comes_back_to_the_bit(name, tmp_path):
    model, params = create(name)
    folder = sere_jax.save_pretrained(tmp_path / "new" / "folder", model, params)
    assert {path.name for path in folder.iterdir()} == {CONFIG_FILE, PARAMETERS_FILE, CARD_FILE}
    loaded, loaded_params = sere_jax.load_pretrained(str(folder))
    assert loaded.config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, loaded_params)


def test_loading_traces_the_initialization_once(saved, monkeypatch):
    calls = []
    original = sere_jax.SeReVAE.__call__

    def counted(self, *arguments, **options):
        calls.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(sere_jax.SeReVAE, "__call__", counted)
    jax.clear_caches()
    sere_jax.load_pretrained(saved[0])
    assert len(calls) == 1


def test_a_loaded_model_has_the_same_likelihood(saved):
    folder, model, params = saved
    loaded, loaded_params = sere_jax.load_pretrained(folder)
    x = sere_jax.sample(model, params, jax.random.key(1), 3)
    ours = sere_jax.log_likelihood(model, params, x, jax.random.key(2), 4)
    theirs = sere_jax.log_likelihood(loaded, loaded_params, x, jax.random.key(2), 4)
    np.testing.assert_array_equal(ours, theirs)


def test_the_files_are_json_and_safetensors_that_other_programs_read(saved):
    folder, model, params = saved
    fields = json.loads((folder / CONFIG_FILE).read_text())["model"]
    assert fields["data_shape"] == [4, 4, 1] and fields["system"] == "sere_vae"
    arrays = safetensors.numpy.load_file(folder / PARAMETERS_FILE)
    assert sum(values.size for values in arrays.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    assert {values.dtype for values in arrays.values()} == {np.dtype("float32")}
    _, about = read_parameters(folder / PARAMETERS_FILE, params)
    assert about == {"epochs": 3, "data": "digits"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_the_bits_take_half_the_bytes_and_round(saved, tmp_path, dtype):
    folder, model, params = saved
    sere_jax.save_pretrained(tmp_path, model, params, dtype=dtype)
    sizes = [(f / PARAMETERS_FILE).stat().st_size for f in (folder, tmp_path)]
    assert sizes[1] < 0.7 * sizes[0]
    _, rounded = sere_jax.load_pretrained(tmp_path)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.float32(a.astype(dtype)), b), params, rounded
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}


def test_saving_again_replaces_both_files_and_leaves_others(copy, saved):
    (copy / "notes.txt").write_text("mine")
    other, other_params = create("ladder_vae")
    sere_jax.save_pretrained(copy, other, other_params)
    assert sere_jax.load_pretrained(copy)[0].config == other.config
    assert {path.name for path in copy.iterdir()} == {
        CONFIG_FILE,
        PARAMETERS_FILE,
        CARD_FILE,
        "notes.txt",
    }
    assert "ladder_vae" in (copy / CARD_FILE).read_text()
    assert "digits" not in (copy / CARD_FILE).read_text()  # that of the model before is gone


def test_parameters_of_another_model_are_refused(saved, tmp_path):
    _, model, params = saved
    _, other_params = create("ladder_vae")
    more = {**params, "more": {"bias": np.zeros(3)}}
    wide = jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 2)), params)
    for other, difference in (
        (other_params, "they lack hierarchy/layers/"),
        (more, "they have more/bias besides"),
        (wide, r"hierarchy/.* has the shape \(.*, 2\) instead of \("),
    ):
        with pytest.raises(ValueError, match=f"params belong to another model: {difference}"):
            sere_jax.save_pretrained(tmp_path / "none", model, other)
    assert not (tmp_path / "none").exists()


def test_a_file_of_another_model_is_refused(copy):
    path = copy / CONFIG_FILE
    fields = json.loads(path.read_text())
    fields["model"]["hidden_size"] = 9
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="model.safetensors belong to another model"):
        sere_jax.load_pretrained(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_the_type_cannot_represent_is_refused_by_name(saved, tmp_path, value):
    _, model, params = saved
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)
    with pytest.raises(ValueError, match=r"\w+/\w+ holds .* which float16 cannot represent"):
        sere_jax.save_pretrained(tmp_path, model, bad, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_an_unknown_type_is_refused(saved, tmp_path):
    _, model, params = saved
    with pytest.raises(ValueError, match="dtype='int8' must be one of float32, float16, bfloat16"):
        sere_jax.save_pretrained(tmp_path, model, params, dtype="int8")


@pytest.mark.parametrize("name", [CONFIG_FILE, PARAMETERS_FILE])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no .*{name}; .*--mode=export"):
        sere_jax.load_pretrained(copy)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_torn_file_is_refused(copy, kept):
    path = copy / PARAMETERS_FILE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        sere_jax.load_pretrained(copy)


def test_one_wrong_bit_is_noticed_wherever_it_is(copy, saved):
    path = copy / PARAMETERS_FILE
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(0, header, 7), *range(header, len(whole), 997)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged|another model"):
            read_parameters(path, saved[2])


def test_files_that_were_not_written_together_are_refused(copy):
    path = copy / CONFIG_FILE
    fields = json.loads(path.read_text())
    fields["model"]["sigma_max"] *= 2  # of the same shapes
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"was not written with the config\.json beside it"):
        sere_jax.load_pretrained(copy)


def test_the_folder_of_a_run_is_left_alone(copy, saved):
    path = copy / CONFIG_FILE
    recorded = json.loads(path.read_text()) | {"training": {}}
    path.write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match="is the folder of a run"):
        sere_jax.save_pretrained(copy, *saved[1:])
    assert json.loads(path.read_text()) == recorded


class WithTemperature(sere_jax.SeReVAE):
    """A system of one's own, with a parameter that is a single number."""

    def setup(self):
        super().setup()
        self.temperature = self.param("temperature", lambda _: jnp.float32(2.0))


def test_a_parameter_may_be_a_single_number(tmp_path, monkeypatch):
    monkeypatch.setitem(sere_jax.functions.SYSTEMS, "with_temperature", WithTemperature)
    config = dataclasses.replace(CONFIGS["mlp"], system="with_temperature")
    model = sere_jax.create_model(config)
    params = sere_jax.init(model, jax.random.key(0))
    assert params["temperature"].shape == ()
    _, loaded = sere_jax.load_pretrained(sere_jax.save_pretrained(tmp_path, model, params))
    jax.tree.map(np.testing.assert_array_equal, params, loaded)


@pytest.mark.parametrize("value", [np.int32(3), np.float32(np.nan)])
def test_values_that_are_no_parameters_are_refused(copy, value):
    path = copy / PARAMETERS_FILE
    arrays = safetensors.numpy.load_file(path)
    name = min(arrays)
    arrays[name] = np.full(arrays[name].shape, value)
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match=f"{name} holds values that are no finite numbers"):
        sere_jax.load_pretrained(copy)


def test_a_file_of_another_program_has_no_checksum(copy, saved):
    path = copy / PARAMETERS_FILE
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)
    jax.tree.map(np.testing.assert_array_equal, sere_jax.load_pretrained(copy)[1], saved[2])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', '{"model": {"data_shape": '])
def test_a_configuration_that_is_none_is_refused(copy, text):
    (copy / CONFIG_FILE).write_text(text)
    with pytest.raises((ValueError, ConfigError), match=r"config\.json holds no model|config\."):
        sere_jax.load_pretrained(copy)


def test_an_extension_must_be_imported_and_is_not_by_loading(copy):
    path = copy / CONFIG_FILE
    fields = json.loads(path.read_text())
    fields["model"]["bijector"] = "of_mine"
    path.write_text(json.dumps(fields))
    (copy / "of_mine.py").write_text("raise SystemExit('was imported')")
    with pytest.raises(ConfigError, match="import its file first"):
        sere_jax.load_pretrained(copy)


# ---------------------------------------------------------------------------- the model card


def test_the_card_says_how_to_load_and_what_is_known(saved, tmp_path, monkeypatch):
    _, model, params = saved
    about = {"licence": "Apache-2.0", "nats": 22.5, "command": "python a | b", "text": "two\nlines"}
    folder = sere_jax.save_pretrained(tmp_path / "model", model, params, about)
    _, front, card = (folder / CARD_FILE).read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["library_name"] == "sere-jax" and fields["license"] == "apache-2.0"
    for row in ("| nats | 22.5 |", r"| command | python a \| b |", "| text | two lines |"):
        assert row in card
    assert "| weights | float32 |" in card and '"latent_shape": [2]' in card
    lines = card.split("```python\n")[1].split("```")[0]
    found = {}
    monkeypatch.chdir(folder)
    exec(lines, found)
    jax.tree.map(np.testing.assert_array_equal, found["params"], params)
    assert found["images"].shape == (16, *model.config.data_shape)


def test_a_readme_of_ones_own_stays(saved, tmp_path):
    (tmp_path / CARD_FILE).write_text("# mine")
    sere_jax.save_pretrained(tmp_path, *saved[1:])
    assert (tmp_path / CARD_FILE).read_text() == "# mine"


# ---------------------------------------------------------------------------- the hub


def stand_in(monkeypatch, snapshot_download):
    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_name_that_is_no_folder_here_is_loaded_from_the_hub(saved, monkeypatch, tmp_path):
    calls = []

    def snapshot_download(name, *, revision, allow_patterns):
        calls.append((name, revision, sorted(allow_patterns)))
        return str(saved[0])

    stand_in(monkeypatch, snapshot_download)
    monkeypatch.chdir(tmp_path)
    for revision in (None, "v1"):
        model, params = sere_jax.load_pretrained("someone/digits", revision=revision)
        assert model.config == saved[1].config
        jax.tree.map(np.testing.assert_array_equal, params, saved[2])
    files = [CONFIG_FILE, PARAMETERS_FILE]
    assert calls == [("someone/digits", None, files), ("someone/digits", "v1", files)]


def test_a_folder_here_comes_before_the_hub(saved, copy, monkeypatch):
    stand_in(monkeypatch, None)
    monkeypatch.chdir(copy.parent.parent)
    name = f"{copy.parent.name}/{copy.name}"
    assert sere_jax.load_pretrained(name)[0].config == saved[1].config


@pytest.mark.parametrize("name", ["/none/here", "./runs/none", "none", "a/b/c", "../none"])
def test_other_paths_are_no_names_of_the_hub(monkeypatch, tmp_path, name):
    stand_in(monkeypatch, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no .*config\.json; .*--mode=export"):
        sere_jax.load_pretrained(name)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not there
    monkeypatch.chdir(tmp_path)
    message = r"no folder runs/digits here, .*pip install huggingface_hub"
    with pytest.raises(FileNotFoundError, match=message):
        sere_jax.load_pretrained("runs/digits")


class RepositoryNotFoundError(Exception):
    """As the client's, which is no OSError in all versions."""


@pytest.mark.parametrize(
    "error", [ConnectionError("offline\nand more"), RepositoryNotFoundError("404"), OSError()]
)
def test_what_the_hub_does_not_give_is_one_error(monkeypatch, tmp_path, error):
    def snapshot_download(*_, **__):
        raise error

    stand_in(monkeypatch, snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="hub did not give revision main") as caught:
        sere_jax.load_pretrained("someone/digits")
    assert type(error).__name__ in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_file_of_the_hub_is_refused(copy, monkeypatch, tmp_path):
    path = copy / PARAMETERS_FILE
    path.write_bytes(path.read_bytes()[:-5])
    stand_in(monkeypatch, lambda *_, **__: str(copy))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        sere_jax.load_pretrained("someone/digits")
