"""Data sets are prepared from a local server or directory, and read back by TFDS itself."""

import os
import pathlib
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import cifar, mnist

from experiments.data import preparing
from experiments.system.errors import UserError


def _read(name: str, data_dir: pathlib.Path, split: str) -> list[dict]:
    source = tfds.data_source(name, split=split, data_dir=data_dir)
    return source.__getitems__(range(len(source)))


def _assert_same_examples(examples: list[dict], images: np.ndarray, labels: np.ndarray) -> None:
    """TFDS shuffles while it prepares, so the examples are compared as a set."""
    assert len(examples) == len(images)
    actual = {example["image"].tobytes(): int(example["label"]) for example in examples}
    expected = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    assert actual == expected
    assert all(example["image"].shape == images.shape[1:] for example in examples)


@pytest.fixture
def served_mnist(mnist_source, server, monkeypatch):
    source = mnist_source(seed=1)
    source.write(server.directory)
    monkeypatch.setattr(mnist.MNIST, "url_infos", source.url_infos(server.url))
    return source


def _command_line(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.prepare_data", *arguments],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )


@pytest.mark.parametrize("builder_cls", [mnist.MNIST, mnist.FashionMNIST, mnist.KMNIST])
def test_downloads_mnist_and_the_like(
    builder_cls, mnist_source, server, tmp_path, monkeypatch, capsys
):
    name = builder_cls.name
    source = mnist_source(seed=1)
    source.write(server.directory)
    monkeypatch.setattr(builder_cls, "url_infos", source.url_infos(server.url))

    directory = preparing.prepare(name, str(tmp_path / "data"))

    assert directory == tmp_path / "data" / name / "3.0.1"
    for split, images in source.images.items():
        examples = _read(name, tmp_path / "data", split)
        _assert_same_examples(examples, images, source.labels[split])
    output = capsys.readouterr()
    assert output.out == ""
    assert f"Downloading {name}" in output.err


@pytest.mark.parametrize("builder_cls", [cifar.Cifar10, cifar.Cifar100])
def test_prepares_cifar(builder_cls, tmp_path, server, monkeypatch, request):
    name = builder_cls.name
    source = request.getfixturevalue(f"{name}_source")
    source.write(server.directory)
    monkeypatch.setattr(builder_cls, "url_infos", source.url_infos(server.url))

    preparing.prepare(name, str(tmp_path / "data"))

    for split, images in source.images.items():
        examples = _read(name, tmp_path / "data", split)
        _assert_same_examples(examples, images, source.labels[split])
        for example in examples:
            index = int(example["id"].decode().removeprefix(f"{split}_"))
            np.testing.assert_array_equal(example["image"], images[index])
            if name == "cifar100":
                assert example["coarse_label"] == example["label"] // 2
    features = tfds.builder(name, data_dir=tmp_path / "data").info.features
    assert features["label"].names == [f"class {i}" for i in range(features["label"].num_classes)]


def test_keeps_what_the_official_builder_declares(served_mnist, tmp_path):
    official = tfds.builder("mnist", data_dir=tmp_path / "elsewhere")
    preparing.prepare("mnist", str(tmp_path / "data"))
    prepared = tfds.builder_from_directory(tmp_path / "data" / "mnist" / "3.0.1")

    assert prepared.info.full_name == official.info.full_name
    assert prepared.info.features.to_json() == official.info.features.to_json()
    assert prepared.info.citation == official.info.citation
    assert prepared.info.file_format.value == "array_record"
    assert tfds.builder_cls("mnist") is mnist.MNIST


def test_does_nothing_if_prepared(served_mnist, server, tmp_path):
    preparing.prepare("mnist", str(tmp_path / "data"))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    server.downloads.clear()

    preparing.prepare("mnist", str(tmp_path / "data"))

    assert server.downloads == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == written


def test_reads_the_environment_variable(served_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "from_environment"))
    assert preparing.prepare("mnist").is_relative_to(tmp_path / "from_environment")
    assert preparing.resolve_data_dir(str(tmp_path)) == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert preparing.resolve_data_dir() == pathlib.Path.home() / "tensorflow_datasets"


@pytest.mark.parametrize("manual", [False, True])
def test_refuses_a_wrong_checksum(manual, served_mnist, server, tmp_path):
    damaged = server.directory / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    manual_dir = str(server.directory) if manual else None

    with pytest.raises(UserError, match="train-labels-idx1-ubyte.gz has a wrong checksum") as info:
        preparing.prepare("mnist", str(tmp_path / "data"), manual_dir)

    assert "\n" not in str(info.value)
    assert not list((tmp_path / "data").rglob("train-labels*"))
    assert not list((tmp_path / "data").rglob("*.json"))


def test_refuses_a_missing_file_and_goes_on_from_there(served_mnist, server, tmp_path):
    missing = server.directory / "t10k-labels-idx1-ubyte.gz"
    content = missing.read_bytes()
    missing.unlink()
    with pytest.raises(UserError, match="404.*t10k-labels-idx1-ubyte.gz.*--manual_dir"):
        preparing.prepare("mnist", str(tmp_path / "data"))
    assert not (tmp_path / "data" / "mnist").exists()

    missing.write_bytes(content)
    server.downloads.clear()
    preparing.prepare("mnist", str(tmp_path / "data"))
    assert server.downloads == ["/t10k-labels-idx1-ubyte.gz"]


def test_replaces_a_damaged_earlier_download(served_mnist, tmp_path):
    earlier = tmp_path / "data" / "downloads" / "mnist" / "train-images-idx3-ubyte.gz"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"half of it")
    preparing.prepare("mnist", str(tmp_path / "data"))
    assert earlier.read_bytes() == served_mnist.contents[earlier.name]


def test_unreachable_host_fails_soon(closed_url, mnist_source, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist.MNIST, "url_infos", mnist_source(1).url_infos(closed_url))
    start = time.monotonic()
    with pytest.raises(preparing.PreparationImpossibleError, match="cannot be reached") as info:
        preparing.prepare("mnist", str(tmp_path / "data"))
    assert time.monotonic() - start < 5
    assert closed_url in str(info.value)
    assert "--manual_dir" in str(info.value)
    assert not (tmp_path / "data").exists()


def test_manual_dir_downloads_nothing(mnist_source, closed_url, tmp_path, monkeypatch):
    source = mnist_source(seed=1)
    source.write(tmp_path / "manual")
    monkeypatch.setattr(mnist.MNIST, "url_infos", source.url_infos(closed_url))

    preparing.prepare("mnist", str(tmp_path / "data"), str(tmp_path / "manual"))

    examples = _read("mnist", tmp_path / "data", "train")
    _assert_same_examples(examples, source.images["train"], source.labels["train"])
    assert {path.name for path in (tmp_path / "manual").iterdir()} == set(source.contents)


def test_manual_dir_without_a_file_names_it(served_mnist, server, tmp_path):
    (server.directory / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match=f"{server.directory} lacks train-images-idx3-ubyte.gz"):
        preparing.prepare("mnist", str(tmp_path / "data"), str(server.directory))
    with pytest.raises(UserError, match="is not a directory"):
        preparing.prepare("mnist", str(tmp_path / "data"), str(tmp_path / "nowhere"))
    assert server.downloads == []


def test_data_sets_with_equal_file_names_are_not_mixed(mnist_source, tmp_path, monkeypatch):
    sources = {"mnist": mnist_source(seed=1), "fashion_mnist": mnist_source(seed=2)}
    builders = {"mnist": mnist.MNIST, "fashion_mnist": mnist.FashionMNIST}
    for name, source in sources.items():
        source.write(tmp_path / name)
        monkeypatch.setattr(builders[name], "url_infos", source.url_infos(f"http://host/{name}"))
        preparing.prepare(name, str(tmp_path / "data"), str(tmp_path / name))

    for name, source in sources.items():
        examples = _read(name, tmp_path / "data", "test")
        _assert_same_examples(examples, source.images["test"], source.labels["test"])


def test_data_sets_with_equal_file_names_are_downloaded_apart(
    mnist_source, server, tmp_path, monkeypatch
):
    sources = {"mnist": mnist_source(seed=1), "fashion_mnist": mnist_source(seed=2)}
    builders = {"mnist": mnist.MNIST, "fashion_mnist": mnist.FashionMNIST}
    for name, source in sources.items():
        source.write(server.directory / name)
        url_infos = source.url_infos(f"{server.url}/{name}")
        monkeypatch.setattr(builders[name], "url_infos", url_infos)
        preparing.prepare(name, str(tmp_path / "data"))

    for name, source in sources.items():
        examples = _read(name, tmp_path / "data", "test")
        _assert_same_examples(examples, source.images["test"], source.labels["test"])


def test_killed_preparation_is_not_taken_for_prepared(served_mnist, server, tmp_path):
    script = """
        import os, sys
        import PIL.Image
        from tensorflow_datasets.core.download import checksums
        from tensorflow_datasets.image_classification import mnist
        from experiments.data import preparing

        def killed_at_the_50th(image, remaining=list(range(50)), from_array=PIL.Image.fromarray):
            if not remaining:
                os.kill(os.getpid(), 9)
            remaining.pop()
            return from_array(image)

        url, source_dir, data_dir = sys.argv[1:]
        PIL.Image.fromarray = killed_at_the_50th
        paths = [f"{source_dir}/{name}" for name in os.listdir(source_dir)]
        infos = [checksums.compute_url_info(path) for path in paths]
        mnist.MNIST.url_infos = {f"{url}/{info.filename}": info for info in infos}
        preparing.prepare("mnist", data_dir)
    """
    data_dir = tmp_path / "data"
    arguments = [server.url, str(server.directory), str(data_dir)]
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script), *arguments])
    assert process.returncode == -9
    assert list((data_dir / "mnist").iterdir())  # It was killed while it wrote.

    assert not preparing.is_prepared(preparing.find_builder("mnist", str(data_dir)))
    preparing.prepare("mnist", str(data_dir))
    examples = _read("mnist", data_dir, "train")
    _assert_same_examples(examples, served_mnist.images["train"], served_mnist.labels["train"])


def test_what_another_process_has_prepared_meanwhile_is_taken(served_mnist, tmp_path, monkeypatch):
    data_dir = tmp_path / "data"
    module = sys.modules["experiments.data.preparing.prepare"]  # its name is a function's, too
    first = module._prepare_without_tensorflow

    def beaten(builder, manual_dir):
        first(preparing.find_builder("mnist", str(data_dir)), manual_dir)
        raise FileExistsError("in the way")

    monkeypatch.setattr(module, "_prepare_without_tensorflow", beaten)
    directory = preparing.prepare("mnist", str(data_dir))
    assert directory == data_dir / "mnist" / "3.0.1"
    examples = _read("mnist", data_dir, "train")
    _assert_same_examples(examples, served_mnist.images["train"], served_mnist.labels["train"])


@pytest.mark.parametrize("lost", ["dataset_info.json", "mnist-train.array_record-00000-of-00001"])
def test_damaged_directory_is_refused(lost, served_mnist, tmp_path):
    directory = preparing.prepare("mnist", str(tmp_path / "data"))
    (directory / lost).unlink()
    with pytest.raises(UserError, match=rf"damaged \(.*{lost}.*\).*in another directory"):
        preparing.prepare("mnist", str(tmp_path / "data"))


@pytest.mark.skipif(os.name != "posix", reason="needs a directory that cannot be created")
def test_unwritable_directory_is_refused(served_mnist):
    with pytest.raises(UserError, match="cannot be written to /proc/data.*--data_dir"):
        preparing.prepare("mnist", "/proc/data")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "no data set is called 'mnits'.*nearest names are.*mnist"),
        ("photo", "nearest names are.*photos"),
        ("mnist:9.9.9", "3.0.1"),
        ("em nist", r"NAME\[/CONFIG\]\[:VERSION\]"),
    ],
)
def test_unknown_data_set_is_refused(name, message, tmp_path):
    with pytest.raises(UserError, match=message) as info:
        preparing.prepare(name, str(tmp_path))
    assert "\n" not in str(info.value)


def test_other_data_sets_need_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TensorFlow.*'\.\[tensorflow\]'.*mnist"):
        preparing.prepare("svhn_cropped", str(tmp_path))


def test_official_builders_are_not_left_to_retry_for_minutes(closed_url, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    builder_cls = tfds.builder_cls("svhn_cropped")
    infos = {f"{closed_url}/train.mat": checksums.UrlInfo(1, "0", "train.mat")}
    monkeypatch.setattr(builder_cls, "url_infos", infos)
    for manual_dir in (None, str(tmp_path)):
        with pytest.raises(preparing.PreparationImpossibleError, match="cannot be reached"):
            preparing.prepare("svhn_cropped", str(tmp_path / "data"), manual_dir)


def test_command_line(served_mnist, tmp_path):
    preparing.prepare("mnist", str(tmp_path / "data"))

    process = _command_line("--dataset=mnist", f"--data_dir={tmp_path / 'data'}")
    assert process.returncode == 0
    directory = tmp_path / "data" / "mnist" / "3.0.1"
    assert process.stdout == f"mnist is already prepared in {directory}\n"

    process = _command_line("--dataset=mnits", f"--data_dir={tmp_path / 'data'}")
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("error: no data set is called 'mnits'")
    assert process.stderr.count("\n") == 1
