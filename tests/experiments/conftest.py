"""A tiny run, small data sets in the formats of the genuine ones, and a server to download from."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import pathlib
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from command_line import PICTURES, locked, shared_folder, train


@pytest.fixture(scope="session")
def uninterrupted() -> pathlib.Path:
    """The workdir of a tiny run that nothing interrupted, for all workers; not to be changed."""
    workdir = shared_folder() / "uninterrupted"
    with locked(shared_folder() / "uninterrupted.lock"):
        if not (workdir / "report.html").exists():
            train(workdir, PICTURES, "--config.sampling.completion_steps=2")
    return workdir


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """The source files of a data set, and what a correct reader finds in them."""

    contents: dict[str, bytes]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    def write(self, directory: pathlib.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for filename, content in self.contents.items():
            (directory / filename).write_bytes(content)

    def url_infos(self, base_url: str) -> dict:
        """What TFDS registers for its data sets: address -> size and SHA-256."""
        from tensorflow_datasets.core.download import checksums
        from tensorflow_datasets.core.utils import Size

        return {
            f"{base_url}/{filename}": checksums.UrlInfo(
                Size(len(content)), hashlib.sha256(content).hexdigest(), filename
            )
            for filename, content in self.contents.items()
        }


def _random_examples(seed: int, shape: tuple[int, ...]) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    sizes = {"train": 65, "test": 16}
    images = {split: rng.integers(0, 256, (n, *shape), np.uint8) for split, n in sizes.items()}
    labels = {split: rng.integers(0, 10, n, np.uint8) for split, n in sizes.items()}
    return images, labels


@pytest.fixture
def mnist_source() -> Callable[[int], SourceFiles]:
    """Returns a function: seed -> source files in the format of MNIST."""

    def make(seed: int) -> SourceFiles:
        images, labels = _random_examples(seed, (28, 28, 1))
        contents = {}
        for split, prefix in [("train", "train"), ("test", "t10k")]:
            num = len(labels[split])
            contents[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(
                struct.pack(">IIII", 0x00000803, num, 28, 28) + images[split].tobytes()
            )
            contents[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(
                struct.pack(">II", 0x00000801, num) + labels[split].tobytes()
            )
        return SourceFiles(contents, images, labels)

    return make


def _cifar_archive(prefix: str, members: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        for filename, content in members.items():
            member = tarfile.TarInfo(f"{prefix}/{filename}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _cifar_records(images: np.ndarray, labels: np.ndarray, coarse: bool) -> bytes:
    return b"".join(
        bytes([label // 2] * coarse + [label])
        + b"".join(image[..., channel].tobytes() for channel in range(3))
        for image, label in zip(images, labels, strict=True)
    )


@pytest.fixture
def cifar10_source() -> SourceFiles:
    """Source files in the format of CIFAR-10: five training batches, one label of a record."""
    images, labels = _random_examples(3, (32, 32, 3))
    members = {"batches.meta.txt": "\n".join(f"class {i}" for i in range(10)).encode() + b"\n\n"}
    for batch in range(5):
        part = slice(13 * batch, 13 * batch + 13)
        members[f"data_batch_{batch + 1}.bin"] = _cifar_records(
            images["train"][part], labels["train"][part], coarse=False
        )
    members["test_batch.bin"] = _cifar_records(images["test"], labels["test"], coarse=False)
    archive = _cifar_archive("cifar-10-batches-bin", members)
    return SourceFiles({"cifar-10-binary.tar.gz": archive}, images, labels)


@pytest.fixture
def cifar100_source() -> SourceFiles:
    """Source files in the format of CIFAR-100: a coarse label (here half the fine one) as well."""
    images, labels = _random_examples(4, (32, 32, 3))
    members = {
        "coarse_label_names.txt": "\n".join(f"coarse {i}" for i in range(20)).encode() + b"\n",
        "fine_label_names.txt": "\n".join(f"class {i}" for i in range(100)).encode() + b"\n",
        "train.bin": _cifar_records(images["train"], labels["train"], coarse=True),
        "test.bin": _cifar_records(images["test"], labels["test"], coarse=True),
    }
    archive = _cifar_archive("cifar-100-binary", members)
    return SourceFiles({"cifar-100-binary.tar.gz": archive}, images, labels)


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 (the name is the library's)
        self.server.downloads.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclasses.dataclass
class Server:
    """A web server on this machine that serves a directory."""

    url: str
    directory: pathlib.Path
    downloads: list[str]


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    """A web server, with the paths downloaded so far."""
    directory = tmp_path / "served"
    directory.mkdir()
    handler = functools.partial(_QuietHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        http_server.downloads = []
        thread = threading.Thread(target=http_server.serve_forever, args=(0.05,))
        thread.start()
        yield Server(
            f"http://127.0.0.1:{http_server.server_port}", directory, http_server.downloads
        )
        http_server.shutdown()
        thread.join()


@pytest.fixture
def closed_url() -> str:
    """An address that refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent_url() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"
