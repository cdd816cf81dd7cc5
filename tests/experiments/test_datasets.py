"""Data sets: what is in the arrays, what is refused, and that the cache never serves old data."""

import os
import pathlib
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable

import ml_collections
import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import mnist

from experiments.data import DATASETS, Dataset, Labels, load_dataset, preparing
from experiments.data import tfds as tfds_loader
from experiments.data.stored import StoredImages
from experiments.system.errors import UserError


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch) -> pathlib.Path:
    """The tests neither use nor fill the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _load(**fields) -> Dataset:
    defaults = {
        "data_dir": "",
        "path": "",
        "validation_size": 0,
        "num_train_examples": 0,
        "image_size": 32,
        "download": True,
    }
    return load_dataset(ml_collections.ConfigDict({**defaults, **fields}))


def _refusal(**fields) -> str:
    with pytest.raises(UserError) as info:
        _load(**fields)
    assert "\n" not in str(info.value)
    return str(info.value)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------- digits


def test_digits_are_those_of_scikit_learn():
    dataset = _load(name="digits", validation_size=100)
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.max_value == dataset.train.max() == 16
    assert dataset.train.dtype == np.uint8
    parts = [dataset.train, dataset.validation, dataset.test]
    assert [len(part) for part in parts] == [1315, 100, 382]
    expected = sklearn.datasets.load_digits().data.reshape(-1, 8, 8, 1)
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_digits_are_split_where_a_form_begins():
    """Every form starts with the digits 0 to 9, three times but for a few omissions."""
    first = len(sklearn.datasets.load_digits().target) - len(_load(name="digits").test)
    labels = sklearn.datasets.load_digits().target[first : first + 20]
    np.testing.assert_array_equal(labels, [*range(10), *range(10)])


@pytest.mark.parametrize(
    ("validation_size", "expected"),
    [(0, 0), (0.0, 0), (1, 1), (200, 200), (200.0, 200), (0.1, 142), (1e-6, 1), (1414, 1414)],
)
def test_validation_size(validation_size, expected):
    dataset = _load(name="digits", validation_size=validation_size)
    assert len(dataset.validation) == expected
    assert len(dataset.train) == 1415 - expected
    assert dataset.validation.shape[1:] == dataset.train.shape[1:]


@pytest.mark.parametrize("validation_size", [-1, 1415, 10_000, 1.5, -0.1])
def test_impossible_validation_size_is_refused(validation_size):
    message = _refusal(name="digits", validation_size=validation_size)
    assert f"config.dataset.validation_size={validation_size} " in message


def test_num_train_examples_keeps_the_first():
    whole = _load(name="digits", validation_size=100)
    part = _load(name="digits", validation_size=100, num_train_examples=50)
    np.testing.assert_array_equal(part.train, whole.train[:50])
    np.testing.assert_array_equal(part.validation, whole.validation)
    np.testing.assert_array_equal(part.test, whole.test)
    assert len(_load(name="digits", num_train_examples=10_000).train) == 1415
    assert "num_train_examples=-1" in _refusal(name="digits", num_train_examples=-1)


def test_fingerprint_depends_on_all_images():
    images = _rng().integers(0, 256, (6, 2, 3, 1), np.uint8)
    changed = images.copy()
    changed[5, 1, 2, 0] ^= 1
    parts = [images[:3], images[3:5], images[5:]]

    def fingerprint(name="a", parts=parts, max_value=255):
        return Dataset(name, *parts, max_value).fingerprint

    assert fingerprint() == fingerprint(name="b") == fingerprint(parts=[p.copy() for p in parts])
    others = [
        fingerprint(parts=[images[:3], images[3:5], changed[5:]]),
        fingerprint(parts=[images[:2], images[2:5], images[5:]]),
        fingerprint(parts=[images[2::-1], images[3:5], images[5:]]),
        fingerprint(parts=[p.transpose(0, 2, 1, 3) for p in parts]),
        fingerprint(max_value=16),
    ]
    assert len({fingerprint(), *others}) == 6


def test_fingerprint_is_stable():
    """A run started by an earlier version or another process must recognize its data."""
    assert _load(name="digits", validation_size=0.1).fingerprint == "8d332d3bb090c62e"


def test_labels_of_digits_are_those_of_scikit_learn():
    dataset = _load(name="digits", validation_size=100, condition="label")
    labels, targets = dataset.labels, sklearn.datasets.load_digits().target
    assert labels.num_classes == 10
    for split, expected in zip(
        ("train", "validation", "test"), np.split(targets, [1315, 1415]), strict=True
    ):
        np.testing.assert_array_equal(getattr(labels, split), expected)
        assert getattr(labels, split).dtype == np.int32
    part = _load(name="digits", num_train_examples=50, condition="label")
    np.testing.assert_array_equal(part.labels.train, targets[:50])
    plain = _load(name="digits", validation_size=100)
    assert plain.labels is None
    np.testing.assert_array_equal(plain.train, dataset.train)
    assert plain.fingerprint != dataset.fingerprint


def test_fingerprint_depends_on_all_labels():
    images = np.zeros((3, 2, 2, 1), np.uint8)
    one, other = np.int32([0, 1, 2]), np.int32([0, 2, 1])
    prints = {
        Dataset("a", images, images, images, 255, Labels(*parts, num_classes=3)).fingerprint
        for parts in ((one, one, one), (other, one, one), (one, other, one), (one, one, other))
    }
    assert len(prints | {Dataset("a", images, images, images, 255).fingerprint}) == 5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Labels(*[np.int32([0, 1, 2])] * 2, np.int32([0, 1]), 3), "'test' .* integers .3., one an"),
        (Labels(*[np.float32([0, 1, 2])] * 3, 3), "'train' .* they are float32, shape .3."),
        (Labels(*[np.int32([0, 1, 3])] * 3, 3), "must lie from 0 to 2, but they are 0 to 3"),
        (Labels(*[np.int32([0, -1, 2])] * 3, 3), "must lie from 0 to 2, but they are -1 to 2"),
        (None, "condition='label' needs labels, which 'wrong' has not"),
    ],
)
def test_labels_that_a_loader_must_not_return_are_refused(monkeypatch, labels, message):
    images = np.zeros((3, 2, 2, 1), np.uint8)
    wrong = Dataset("wrong", images, images, images, 255, labels)
    monkeypatch.setitem(DATASETS, "wrong", lambda config: wrong)
    assert _load(name="wrong").labels is None
    assert re.search(message, _refusal(name="wrong", condition="label"))


# ------------------------------------------------------------------------------------- photos


@pytest.mark.parametrize("size", [1, 7, 32, 96])
def test_photos_shapes(size):
    dataset = _load(name="photos", image_size=size, validation_size=5, num_train_examples=500)
    assert dataset.image_shape == (size, size, 3)
    assert dataset.max_value == 255
    assert len(dataset.validation) == 5
    for images in (dataset.train, dataset.validation, dataset.test):
        assert images.dtype == np.uint8
        assert len(images) > 0


def test_photos_default_size_gives_thousands_of_varied_patches():
    dataset = _load(name="photos", validation_size=0.5)
    assert len(dataset.train) > 4000
    assert len(np.unique(dataset.train.reshape(len(dataset.train), -1), axis=0)) > 4000
    assert (dataset.train.min(), dataset.train.max()) == (0, 255)
    # A small part of the patches is a fair sample of both photographs.
    part = dataset.train[:500].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(part, dataset.train.mean(axis=(0, 1, 2)), atol=10)


def test_the_first_photos_of_the_test_set_are_varied():
    """Figures show them; in the order of the photograph they would all be sky."""
    test = _load(name="photos").test
    brightness = test.mean(axis=(1, 2, 3))
    assert np.std(brightness[:16]) > 0.5 * np.std(brightness)


def test_photos_share_no_pixel(monkeypatch):
    """With photographs whose colours number the pixels, the sets have no colour in common."""
    numbers = np.arange(2 * 427 * 640).reshape(2, 427, 640)
    photos = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=-1).astype(np.uint8)
    bunch = sklearn.datasets.load_sample_images()
    assert [image.shape for image in bunch.images] == [(427, 640, 3)] * 2
    bunch.images = list(photos)
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: bunch)

    dataset = _load(name="photos", validation_size=10_000)

    uses = {}
    # Patches are contiguous: each is its first pixel plus the offsets of a square.
    offsets = np.arange(32)[:, None] * 640 + np.arange(32)
    for split in ("train", "validation", "test"):
        high, middle, low = np.moveaxis(getattr(dataset, split).astype(np.int32), -1, 0)
        pixel_numbers = high << 16 | middle << 8 | low
        assert (pixel_numbers == pixel_numbers[:, :1, :1] + offsets).all()
        uses[split] = np.bincount(pixel_numbers.ravel(), minlength=numbers.size)
    for first, second in [("train", "validation"), ("train", "test"), ("validation", "test")]:
        assert not np.any((uses[first] > 0) & (uses[second] > 0))
    for split in ("validation", "test"):
        assert uses[split].max() == 1  # No overlaps within either.
    assert len(dataset.validation) == 78


def test_photos_come_from_the_photographs():
    first_patch = sklearn.datasets.load_sample_images().images[0][:32, :32]
    assert any((first_patch == patch).all() for patch in _load(name="photos").train)


@pytest.mark.parametrize("size", [0, -3, 97])
def test_photos_impossible_size_is_refused(size):
    message = _refusal(name="photos", image_size=size)
    assert f"image_size={size} " in message
    assert "1 to 96" in message


# ---------------------------------------------------------------------------------------- npz


@pytest.fixture
def save(tmp_path) -> Callable[..., str]:
    def save_arrays(**arrays: np.ndarray) -> str:
        np.savez(tmp_path / "images.npz", **arrays)
        return str(tmp_path / "images.npz")

    return save_arrays


@pytest.mark.parametrize("shape", [(20, 4, 5), (20, 4, 5, 1), (20, 4, 5, 3), (20, 1, 1, 7)])
def test_npz_shapes(shape, save):
    train = _rng().integers(0, 256, shape, np.uint8)
    test = _rng().integers(0, 256, (3, *shape[1:]), np.uint8)
    dataset = _load(name="npz", path=save(train=train, test=test, labels=[1]), validation_size=4)
    assert dataset.image_shape == (*shape[1:], 1)[:3]
    assert dataset.max_value == 255
    np.testing.assert_array_equal(dataset.train.ravel(), train[:16].ravel())
    np.testing.assert_array_equal(dataset.validation.ravel(), train[16:].ravel())
    np.testing.assert_array_equal(dataset.test.ravel(), test.ravel())


def test_npz_without_a_test_set_holds_out_the_last_tenth(save):
    train = _rng().integers(0, 256, (40, 2, 2), np.uint8)
    dataset = _load(name="npz", path=save(train=train), validation_size=6)
    np.testing.assert_array_equal(dataset.test[..., 0], train[36:])
    np.testing.assert_array_equal(dataset.validation[..., 0], train[30:36])
    np.testing.assert_array_equal(dataset.train[..., 0], train[:30])


def test_npz_keeps_its_own_validation_set(save):
    train, validation, test = (_rng().integers(0, 256, (n, 2, 2), np.uint8) for n in (9, 5, 4))
    path = save(train=train, validation=validation, test=test)
    dataset = _load(name="npz", path=path, validation_size=3)
    np.testing.assert_array_equal(dataset.train[..., 0], train)
    np.testing.assert_array_equal(dataset.validation[..., 0], validation)


def test_npz_labels_go_where_their_images_go(save):
    labels = _rng().integers(0, 5, 40)
    labels[7] = 4
    train = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 2, 2))
    of_test = {"test": train[:3], "test_labels": np.uint8([4, 0, 6])}
    for others, num_classes in (({}, 5), (of_test, 7)):
        path = save(train=train, train_labels=labels, **others)
        dataset = _load(name="npz", path=path, validation_size=6, condition="label")
        assert dataset.labels.num_classes == num_classes
        for split in ("train", "validation", "test"):
            indices = getattr(dataset, split)[:, 0, 0, 0]
            expected = of_test["test_labels"] if others and split == "test" else labels[indices]
            np.testing.assert_array_equal(getattr(dataset.labels, split), expected)


@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        ({}, ["'train_labels' of integers", "one for each of the 4 images", "is missing"]),
        ({"train_labels": np.zeros(3, int)}, ["'train_labels'", "is int64, shape [3]"]),
        ({"train_labels": np.zeros(4)}, ["is float64, shape [4]"]),
        ({"train_labels": np.int8([0, -1, 2, 3])}, ["integers from 0", "is int8"]),
        ({"train_labels": np.zeros((4, 1), int)}, ["shape [4, 1]"]),
        (
            {"train_labels": np.zeros(4, int), "test": np.full((2, 2, 2), 200, np.uint8)},
            ["'test_labels'", "the 2 images", "is missing"],
        ),
        ({"train_labels": np.array([None] * 4)}, ["plain arrays"]),
    ],
)
def test_npz_invalid_labels_are_refused_where_they_are_needed(arrays, fragments, save):
    path = save(train=_GREY, **arrays)
    message = _refusal(name="npz", path=path, condition="label")
    for fragment in fragments:
        assert fragment in message
    assert len(_load(name="npz", path=path).train) >= 3


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_npz_binary_images(dtype, save):
    bits = _rng().integers(0, 2, (20, 3, 3))
    dataset = _load(name="npz", path=save(train=bits.astype(dtype)))
    assert dataset.max_value == 1
    assert dataset.train.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train[..., 0], bits[:18])


def test_npz_integers_within_the_range_of_uint8(save):
    train = _rng().integers(0, 256, (20, 3, 3), np.int64)
    dataset = _load(name="npz", path=save(train=train, test=np.zeros((1, 3, 3), np.uint8)))
    assert dataset.max_value == 255
    np.testing.assert_array_equal(dataset.train[..., 0], train)


def _with_value(value, dtype) -> np.ndarray:
    array = np.zeros((4, 2, 2), dtype)
    array[2, 1, 0] = value
    return array


_GREY = np.full((4, 2, 2), 200, np.uint8)


@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        ({"train": _with_value(0.5, np.float32)}, ["'train' (float32", "value 0.5 at [2, 1, 0]"]),
        ({"train": _with_value(200, np.float64)}, ["float64", "value 200.0 at"]),
        ({"train": _with_value(np.nan, np.float32)}, ["value nan at [2, 1, 0]"]),
        ({"train": _with_value(np.inf, np.float32)}, ["value inf at"]),
        ({"train": _with_value(-1, np.int8)}, ["int8", "value -1 at [2, 1, 0]"]),
        ({"train": _with_value(256, np.uint16)}, ["uint16", "value 256 at"]),
        ({"train": _with_value(1j, np.complex64)}, ["complex64", "does not hold numbers"]),
        ({"train": np.full((4, 2, 2), "a")}, ["does not hold numbers"]),
        ({"train": np.zeros((4, 2), np.uint8)}, ["shape [4, 2]", "has 2 dimensions"]),
        ({"train": np.zeros((4, 2, 2, 1, 1), np.uint8)}, ["has 5 dimensions"]),
        ({"train": np.zeros((0, 2, 2), np.uint8)}, ["shape [0, 2, 2]", "is empty"]),
        ({"train": np.zeros((4, 2, 2, 0), np.uint8)}, ["is empty"]),
        ({"train": _GREY, "test": np.zeros((0, 2, 2), np.uint8)}, ["'test'", "is empty"]),
        ({"train": _GREY, "test": np.zeros((4, 2, 3), np.uint8)}, ["'test'", "'train'", "differ"]),
        ({"train": _GREY, "test": np.ones((4, 2, 2), bool)}, ["'test' (bool", "above 1"]),
        ({"train": _GREY, "validation": np.zeros(3)}, ["'validation'", "has 1 dimensions"]),
        ({"train": _GREY[:1]}, ["too small", "'test'"]),
        ({"images": _GREY}, ["no array 'train', it has images"]),
        ({"train": np.array([None] * 8).reshape(2, 2, 2)}, ["plain arrays"]),
    ],
)
def test_npz_invalid_arrays_are_refused(arrays, fragments, save):
    message = _refusal(name="npz", path=save(**arrays))
    for fragment in [*fragments, "save"]:
        assert fragment in message


def test_npz_invalid_files_are_refused(tmp_path):
    assert "config.dataset.path='' is not a file" in _refusal(name="npz")
    assert "is not a file" in _refusal(name="npz", path=str(tmp_path / "absent.npz"))
    assert "is not a file" in _refusal(name="npz", path=str(tmp_path))
    (tmp_path / "text.npz").write_text("not an archive")
    assert "not a readable .npz" in _refusal(name="npz", path=str(tmp_path / "text.npz"))
    (tmp_path / "empty.npz").write_bytes(b"")
    assert "not a readable .npz" in _refusal(name="npz", path=str(tmp_path / "empty.npz"))
    (tmp_path / "text.npy").write_text("no array")
    assert "not a readable .npy" in _refusal(name="npz", path=str(tmp_path / "text.npy"))
    np.save(tmp_path / "objects.npy", np.array([None] * 4))
    assert "not a readable .npy" in _refusal(name="npz", path=str(tmp_path / "objects.npy"))
    np.save(tmp_path / "cut.npy", np.zeros((4, 2, 2), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    assert "not a readable .npy" in _refusal(name="npz", path=str(tmp_path / "cut.npy"))
    np.save(tmp_path / "train.npy", np.zeros((0, 2, 2), np.uint8))
    assert "'train'" in _refusal(name="npz", path=str(tmp_path))


@pytest.mark.parametrize(
    ("dtype", "shape", "is_stored"),
    [
        (np.uint8, (40, 4, 5), True),
        (np.uint8, (40, 4, 5, 3), True),
        (np.int64, (40, 4, 5), False),
        (bool, (40, 4, 5), False),
    ],
)
def test_npy_files_are_what_an_npz_of_them_is(dtype, shape, is_stored, save, tmp_path):
    arrays = {
        split: _rng().integers(0, 2 if dtype is bool else 256, (num, *shape[1:])).astype(dtype)
        for split, num in (("train", 40), ("validation", 7), ("test", 9))
    }
    labels = {f"{split}_labels": np.arange(len(array)) % 3 for split, array in arrays.items()}
    for names in ({"train"}, {"train", "test"}, set(arrays)):
        (tmp_path / "arrays").mkdir(exist_ok=True)
        some = {name: array for name, array in arrays.items() if name in names}
        some |= {f"{name}_labels": labels[f"{name}_labels"] for name in names}
        for name, array in some.items():
            np.save(tmp_path / "arrays" / name, array)
        expected = _load(name="npz", path=save(**some), validation_size=5, condition="label")
        path = str(tmp_path / "arrays")
        found = _load(name="npz", path=path, validation_size=5, condition="label")
        assert found.fingerprint == expected.fingerprint
        assert found.max_value == expected.max_value
        for split in arrays:
            images = getattr(found, split)
            assert isinstance(images, StoredImages) == is_stored
            np.testing.assert_array_equal(images, getattr(expected, split))
            of_split = getattr(found.labels, split)
            np.testing.assert_array_equal(of_split, getattr(expected.labels, split))
    np.save(tmp_path / "one.npy", arrays["train"])
    expected = _load(name="npz", path=save(train=arrays["train"]), num_train_examples=20)
    found = _load(name="npz", path=str(tmp_path / "one.npy"), num_train_examples=20)
    assert found.fingerprint == expected.fingerprint and len(found.train) == 20


def test_binary_npy_files_are_binary(tmp_path):
    bits = _rng().integers(0, 2, (20, 3, 3), np.uint8)
    np.save(tmp_path / "bits.npy", bits)
    assert _load(name="npz", path=str(tmp_path / "bits.npy")).max_value == 1
    bits[-1, -1, -1] = 2
    np.save(tmp_path / "grey.npy", bits)
    assert _load(name="npz", path=str(tmp_path / "grey.npy")).max_value == 255


# ------------------------------------------------------------------------- TensorFlow Datasets


class FakeImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A prepared data set that TFDS does not know, as a colleague might hand it over."""

    VERSION = tfds.core.Version("1.0.0")
    splits: dict[str, list[np.ndarray]]
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 1))})

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(images) for split, images in self.splits.items()}

    def _generate_examples(self, images):
        for key, image in enumerate(images):
            yield key, {name: self._encode(name, image) for name in self.features}

    def _encode(self, name, image):
        if name == "label":
            return int(image[0, 0] % 3)
        return PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _write_fake(data_dir, seed=0, features=None, **sizes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    splits = {split: rng.integers(0, 256, (n, 5, 4), np.uint8) for split, n in sizes.items()}
    _write_splits(data_dir, features=features, **splits)
    return splits


def _write_splits(data_dir, features=None, **splits) -> None:
    builder_cls = types.new_class("FakeImages", (FakeImages,), {"skip_registration": True})
    builder_cls.splits = splits
    if features is not None:
        builder_cls.features = tfds.features.FeaturesDict(features)
    builder_cls(data_dir=data_dir, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def _as_set(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_tfds_splits(tmp_path):
    splits = _write_fake(tmp_path, train=1100, test=20)  # More than are read at once.
    dataset = _load(name="fake_images", data_dir=str(tmp_path), validation_size=100)
    assert dataset.image_shape == (5, 4, 1)
    assert dataset.max_value == 255
    assert [len(dataset.train), len(dataset.validation)] == [1000, 100]
    assert _as_set(dataset.train) | _as_set(dataset.validation) == _as_set(splits["train"])
    assert _as_set(dataset.test) == _as_set(splits["test"])

    source = tfds.data_source("fake_images", split="train", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.train[3], source[3]["image"])
    np.testing.assert_array_equal(dataset.validation[-1], source[1099]["image"])


def test_tfds_validation_split_is_the_test_set_if_there_is_no_other(tmp_path):
    splits = _write_fake(tmp_path, train=10, validation=4)
    dataset = _load(name="fake_images", data_dir=str(tmp_path), validation_size=3)
    assert _as_set(dataset.test) == _as_set(splits["validation"])
    assert len(dataset.validation) == 3


def test_tfds_validation_split_is_kept(tmp_path):
    splits = _write_fake(tmp_path, train=10, validation=4, test=5)
    dataset = _load(name="fake_images", data_dir=str(tmp_path), validation_size=3)
    for split, images in splits.items():
        assert _as_set(getattr(dataset, split)) == _as_set(images)


def test_tfds_images_that_do_not_shrink_by_a_factor_are_refused(tmp_path):
    _write_fake(tmp_path, train=4, test=2)
    message = _refusal(name="fake_images", data_dir=str(tmp_path), image_size=16)
    assert "image_size=16 means nothing to 'fake_images'; leave it at 32" in message
    message = _refusal(name="fake_images", data_dir=str(tmp_path), shrink=2)
    assert "shrink=2 does not divide images of 5x4" in message


def test_tfds_images_of_zeros_and_ones_are_black_and_white(tmp_path):
    rng = np.random.default_rng(0)
    _write_splits(
        tmp_path, **{split: rng.integers(0, 2, (9, 6, 4), np.uint8) for split in ("train", "test")}
    )
    fields = {"name": "fake_images", "data_dir": str(tmp_path), "validation_size": 2}
    dataset = _load(**fields)
    assert dataset.max_value == 1
    assert set(np.unique(dataset.train)) == {0, 1}
    assert "shrink=2 takes means of pixels, which are 0 or 1" in _refusal(**fields, shrink=2)


@pytest.mark.parametrize("shrink", [2, 3])
def test_tfds_shrunk_images_are_what_numpy_averages(shrink, tmp_path):
    rng = np.random.default_rng(0)
    images = {split: rng.integers(0, 256, (6, 6, 12), np.uint8) for split in ("train", "test")}
    _write_splits(tmp_path, **images)
    fields = {"name": "fake_images", "data_dir": str(tmp_path), "validation_size": 2}
    whole, shrunk = _load(**fields), _load(**fields, shrink=shrink)
    for split in ("train", "validation", "test"):
        before, after = getattr(whole, split), getattr(shrunk, split)
        assert after.dtype == np.uint8
        assert after.shape == (len(before), 6 // shrink, 12 // shrink, 1)
        for i, j in np.ndindex(after.shape[1:3]):
            square = before[:, i * shrink : (i + 1) * shrink, j * shrink : (j + 1) * shrink]
            mean = square.reshape(len(before), -1).mean(axis=1)
            np.testing.assert_array_equal(after[:, i, j, 0], np.floor(mean + 0.5))


def test_tfds_without_a_usable_split_is_refused(tmp_path):
    _write_fake(tmp_path, train=10, extra=4)
    message = _refusal(name="fake_images", data_dir=str(tmp_path))
    assert "has the splits extra, train" in message


@pytest.mark.parametrize("odd_split", ["train", "test"])
def test_tfds_varying_shapes_are_refused(odd_split, tmp_path):
    splits = {"train": [np.zeros((5, 4), np.uint8)] * 4, "test": [np.zeros((5, 4), np.uint8)] * 2}
    splits[odd_split] = [np.zeros((6, 4), np.uint8)] * 2 + splits[odd_split] * (
        odd_split == "train"
    )
    _write_splits(tmp_path, **splits)
    message = _refusal(name="fake_images", data_dir=str(tmp_path))
    assert "different shapes" in message
    assert "[5, 4, 1]" in message
    assert "[6, 4, 1]" in message


def test_tfds_without_images_is_refused(tmp_path):
    _write_splits(tmp_path, {"text": tfds.features.Text()}, train=["a", "b"], test=["c"])
    assert "no features that are uint8 images" in _refusal(
        name="fake_images", data_dir=str(tmp_path)
    )


@pytest.mark.parametrize("sizes", [{"test": 6}, {"validation": 4}, {"test": 6, "validation": 4}])
def test_tfds_labels_go_where_their_images_go(tmp_path, sizes):
    features = {
        "image": tfds.features.Image(shape=(5, 4, 1)),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    _write_fake(tmp_path, features=features, train=40, **sizes)
    fields = {"name": "fake_images", "data_dir": str(tmp_path), "validation_size": 7}
    for _ in range(2):  # decoded, then cached
        dataset = _load(**fields, condition="label")
        assert dataset.labels.num_classes == 3
        for split in ("train", "validation", "test"):
            expected = getattr(dataset, split)[:, 0, 0, 0] % 3
            np.testing.assert_array_equal(getattr(dataset.labels, split), expected)
    plain = _load(**fields)
    assert plain.labels is None
    np.testing.assert_array_equal(plain.train, dataset.train)


@pytest.mark.parametrize(
    "label", [{}, {"label": tfds.features.Tensor(shape=(), dtype=np.int64)}], ids=["none", "number"]
)
def test_tfds_without_classes_has_no_labels(tmp_path, label):
    features = {"image": tfds.features.Image(shape=(5, 4, 1)), **label}
    _write_fake(tmp_path, features=features, train=6, test=2)
    message = _refusal(name="fake_images", data_dir=str(tmp_path), condition="label")
    assert "condition='label' needs labels, which 'fake_images' has not" in message


def test_tfds_image_under_another_name(tmp_path):
    features = {"picture": tfds.features.Image(shape=(5, 4, 1))}
    splits = _write_fake(tmp_path, features=features, train=6, test=2)
    dataset = _load(name="fake_images", data_dir=str(tmp_path))
    assert _as_set(dataset.train) == _as_set(splits["train"])


def test_tfds_damaged_file_is_refused(tmp_path):
    _write_fake(tmp_path, train=60, test=2)
    (file,) = tmp_path.rglob("*train.array_record*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    message = _refusal(name="fake_images", data_dir=str(tmp_path))
    assert f"{file.parent} cannot be read" in message
    assert "prepare it again in another directory DIR" in message and "delete" not in message


def test_unknown_name_is_refused_with_the_nearest(tmp_path):
    _write_fake(tmp_path, train=2, test=2)
    assert "fake_images" in _refusal(name="fake_image", data_dir=str(tmp_path))
    assert "digits" in _refusal(name="digit", data_dir=str(tmp_path))
    assert "config.dataset.name=''" in _refusal(name="")


def test_prepares_on_first_use(mnist_source, server, tmp_path, monkeypatch):
    source = mnist_source(1)
    source.write(server.directory)
    monkeypatch.setattr(mnist.MNIST, "url_infos", source.url_infos(server.url))

    dataset = _load(name="mnist", data_dir=str(tmp_path / "data"), validation_size=5)

    assert _as_set(dataset.test) == _as_set(source.images["test"])
    assert len(dataset.train) == 60
    assert preparing.is_prepared(preparing.find_builder("mnist", str(tmp_path / "data")))


@pytest.mark.parametrize("address", ["closed_url", "silent_url"])
def test_without_a_network_fails_soon(address, mnist_source, tmp_path, monkeypatch, request):
    url = request.getfixturevalue(address)
    monkeypatch.setattr(mnist.MNIST, "url_infos", mnist_source(1).url_infos(url))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    start = time.monotonic()
    message = _refusal(name="mnist")
    assert time.monotonic() - start < 5
    assert f"'mnist' is not prepared in {tmp_path / 'data' / 'mnist'}" in message
    assert url in message
    command = f"python -m experiments.prepare_data --dataset=mnist --data_dir={tmp_path / 'data'}"
    assert f"{command} -- or try" in message
    assert "--config=configs/digits.py" in message


def test_download_can_be_forbidden(mnist_source, server, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist.MNIST, "url_infos", mnist_source(1).url_infos(server.url))
    message = _refusal(name="mnist", data_dir=str(tmp_path / "data"), download=False)
    assert "config.dataset.download is False" in message
    assert server.downloads == []
    message = _refusal(name="cifar10", data_dir=str(tmp_path / "data"), download=False)
    assert "--config.dataset.name=photos" in message


def test_data_set_that_needs_tensorflow_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = _refusal(name="svhn_cropped", data_dir=str(tmp_path))
    assert "'.[tensorflow]'" in message
    assert "--config.dataset.name=photos" in message


# -------------------------------------------------------------------------------------- cache


@pytest.fixture
def count_decoding(monkeypatch) -> list[str]:
    """The splits decoded so far."""
    decoded = []
    decode = tfds_loader._decode_split

    def counting(builder, split, feature):
        decoded.append(split)
        return decode(builder, split, feature)

    monkeypatch.setattr(tfds_loader, "_decode_split", counting)
    return decoded


def test_cache_saves_decoding(tmp_path, cache_home, count_decoding):
    _write_fake(tmp_path, train=10, test=4)
    first = _load(name="fake_images", data_dir=str(tmp_path))
    second = _load(name="fake_images", data_dir=str(tmp_path), num_train_examples=10)
    assert count_decoding == ["train", "test"]
    assert second.fingerprint == first.fingerprint
    assert len(list((cache_home / "sere_jax").iterdir())) == 2


def test_cache_is_not_used_for_other_files(tmp_path, cache_home):
    """The same name and version, files of the same size and time of modification."""
    data_dir = tmp_path / "data"
    _write_fake(data_dir, seed=0, train=10, test=4)
    (file,) = data_dir.rglob("*train.array_record*")
    status = file.stat()
    old = _load(name="fake_images", data_dir=str(data_dir))

    splits = _write_fake(tmp_path / "new", seed=1, train=10, test=4)
    (new_file,) = (tmp_path / "new").rglob("*train.array_record*")
    file.write_bytes(new_file.read_bytes())
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size

    new = _load(name="fake_images", data_dir=str(data_dir))
    assert _as_set(new.train) == _as_set(splits["train"]) != _as_set(old.train)
    np.testing.assert_array_equal(new.test, old.test)
    assert len(list((cache_home / "sere_jax").iterdir())) == 2  # The old one is replaced.


def test_cache_tells_directories_apart(tmp_path):
    for seed in (0, 1, 0):
        directory = tmp_path / f"data{seed}"
        if not directory.exists():
            _write_fake(directory, seed=seed, train=10, test=4)
        source = tfds.data_source("fake_images", split="train", data_dir=directory)
        dataset = _load(name="fake_images", data_dir=str(directory))
        np.testing.assert_array_equal(dataset.train[0], source[0]["image"])


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "other arrays"])
def test_damaged_cache_is_rebuilt(damage, tmp_path, cache_home, count_decoding):
    _write_fake(tmp_path, train=10, test=4)
    good = _load(name="fake_images", data_dir=str(tmp_path))
    (file,) = (cache_home / "sere_jax").glob("*train*")
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        content = content[:-200]
    elif damage == "empty":
        content = bytearray()
    elif damage == "one bit":
        content[content.find(good.train[5].tobytes())] ^= 1
    file.write_bytes(content)
    if damage == "other arrays":
        np.savez(file, something=np.zeros(3))
    count_decoding.clear()

    again = _load(name="fake_images", data_dir=str(tmp_path))
    assert again.fingerprint == good.fingerprint
    assert count_decoding == ["train"]
    _load(name="fake_images", data_dir=str(tmp_path))
    assert count_decoding == ["train"]


def test_unwritable_cache_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    splits = _write_fake(tmp_path, train=10, test=4)
    dataset = _load(name="fake_images", data_dir=str(tmp_path))
    assert _as_set(dataset.train) == _as_set(splits["train"])


# ---------------------------------------------------------------------------------- the genuine


def test_genuine_mnist():
    if not (preparing.resolve_data_dir() / "mnist" / "3.0.1").exists():
        pytest.skip("MNIST is not prepared in TFDS_DATA_DIR")
    # Only the smaller split: to decode the other takes ten seconds.
    images = tfds_loader._read_split(preparing.find_builder("mnist"), "test", "image")
    assert images.shape == (10_000, 28, 28, 1)
    # The widely published mean of the test pixels.
    assert images.mean() / 255 == pytest.approx(0.1325, abs=5e-5)


def test_import_is_light():
    script = """
import sys
import experiments.data
heavy = {"tensorflow_datasets", "tensorflow", "sklearn", "requests", "PIL", "jax"}
print(sorted(heavy & set(sys.modules)))
"""
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert process.stdout == "[]\n"
