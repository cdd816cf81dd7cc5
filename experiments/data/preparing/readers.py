"""Official builders whose source files are read without TensorFlow.

They keep their name, version, features, addresses and checksums.
"""

import gzip
import itertools
import pathlib
import struct
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class _IdxReader:
    """Reads the format of MNIST: gzipped IDX files, one for images and one for labels."""

    source_dir: pathlib.Path

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # It would retry for minutes without a network; the files are there.
        return {
            split: self._generate_examples(
                self.source_dir / f"{prefix}-images-idx3-ubyte.gz",
                self.source_dir / f"{prefix}-labels-idx1-ubyte.gz",
            )
            for split, prefix in [("train", "train"), ("test", "t10k")]
        }

    def _generate_examples(
        self, images_path: pathlib.Path, labels_path: pathlib.Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        import PIL.Image

        # The keys are those of the official builder: they determine the order of the examples.
        pairs = zip(_read_idx(images_path), _read_idx(labels_path), strict=True)
        for key, (image, label) in enumerate(pairs):
            # NumPy arrays would be encoded by TensorFlow, PIL images are not.
            yield key, {"image": PIL.Image.fromarray(image), "label": int(label)}


def _read_idx(path: pathlib.Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = struct.unpack_from(f">{rank}I", content, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


class _CifarReader:
    """Reads the binary version of CIFAR: a tar archive of records, labels before pixels."""

    source_dir: pathlib.Path
    url_infos: Mapping[str, Any]
    info: Any
    _cifar_info: Any

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        (source,) = self.url_infos.values()
        layout = self._cifar_info
        with tarfile.open(self.source_dir / source.filename) as archive:
            contents = {
                member.name.removeprefix(layout.prefix): file.read()
                for member in archive
                if (file := archive.extractfile(member)) is not None
            }
        for label_key, file_name in zip(layout.label_keys, layout.label_files, strict=True):
            names = contents[file_name].decode().split("\n")
            self.info.features[label_key].names = [name for name in names if name]
        return {
            split: self._generate_examples(split, [contents[name] for name in file_names])
            for split, file_names in [("train", layout.train_files), ("test", layout.test_files)]
        }

    def _generate_examples(
        self, split: str, contents: list[bytes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        import PIL.Image

        label_keys = self._cifar_info.label_keys
        height, width, channels = self.info.features["image"].shape
        record_size = len(label_keys) + height * width * channels
        batches = [np.frombuffer(batch, np.uint8).reshape(-1, record_size) for batch in contents]
        # The keys are those of the official builder: they determine the order of the examples.
        for key, record in enumerate(itertools.chain(*batches)):
            labels, pixels = np.split(record, [len(label_keys)])
            image = pixels.reshape(channels, height, width).transpose(1, 2, 0)
            example = {
                "id": f"{split}_{key:05d}",
                # NumPy arrays would be encoded by TensorFlow, PIL images are not.
                "image": PIL.Image.fromarray(np.ascontiguousarray(image)),
            }
            yield key, example | dict(zip(label_keys, map(int, labels), strict=True))


SOURCE_READERS: dict[str, type] = {
    **dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), _IdxReader),
    **dict.fromkeys(("cifar10", "cifar100"), _CifarReader),
}


def tensorflow_free_builder(official: Any) -> Any:
    """The class of an official builder, with its source files read by a class of this module."""
    reader: Any = SOURCE_READERS[official.name]

    class TensorFlowFreeBuilder(reader, official, skip_registration=True):  # type: ignore[call-arg]
        name = official.name

    # TFDS finds the registered checksums beside the module, and records its name.
    TensorFlowFreeBuilder.__module__ = official.__module__
    return TensorFlowFreeBuilder
