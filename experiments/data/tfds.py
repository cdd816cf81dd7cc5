"""Image data sets of TensorFlow Datasets (TFDS), read without TensorFlow."""

from typing import Any

import ml_collections
import numpy as np

from experiments.data import preparing
from experiments.data.cache import cached
from experiments.data.dataset import Dataset, Labels, needs_labels, split_validation
from experiments.data.stored import exceeds
from experiments.system.errors import UserError

_EXAMPLES_PER_READ = 512


@preparing.quiet_logs()
def load_tfds(dataset_config: ml_collections.ConfigDict) -> Dataset:
    """Loads a data set of TFDS, after preparing it if need be.

    Without a split `test`, the split `validation` is the test set; with both, it is the validation
    set. Images whose largest value is 1 are black and white, as those of `binarized_mnist`. The
    decoded images are cached.
    """
    builder = _prepared_builder(dataset_config)
    feature = _image_feature(builder)
    splits = builder.info.splits
    if "train" not in splits or not {"test", "validation"} & set(splits):
        raise UserError(
            f"the data set {dataset_config.name!r} has the splits {', '.join(sorted(splits))}; "
            "needed are 'train' and one of 'test' and 'validation': choose another data set, or "
            "split it yourself and use --config.dataset.name=npz"
        )
    train, validation, test = _parts(builder, feature, dataset_config)
    for split, images in [("test", test), ("validation", validation)]:
        if images.shape[1:] != train.shape[1:]:
            raise _varying_shapes(builder, split, train.shape[1:], images.shape[1:])
    max_value = 255 if any(exceeds(part, 1) for part in (train, validation, test)) else 1
    shrink = dataset_config.get("shrink", 1)
    if shrink != 1 and max_value == 1:
        raise UserError(
            f"config.dataset.shrink={shrink} takes means of pixels, which are 0 or 1 in "
            f"{dataset_config.name!r}; set it to 1"
        )
    train, validation, test = (_shrunk(images, shrink) for images in (train, validation, test))
    labels = _labels(builder, dataset_config) if needs_labels(dataset_config) else None
    return Dataset(dataset_config.name, train, validation, test, max_value, labels=labels)


def _shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor pixels, rounded half up, uint8 [num, h / factor, w / factor, c]."""
    if factor == 1:
        return images
    num, height, width, channels = images.shape
    if height % factor or width % factor:
        raise UserError(
            f"config.dataset.shrink={factor} does not divide images of {height}x{width}; choose a "
            "divisor of both, or 1"
        )
    squares = images.reshape(num, height // factor, factor, width // factor, factor, channels)
    sums = squares.sum(axis=(2, 4), dtype=np.uint32)
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def _parts(
    builder: Any, feature: str, dataset_config: ml_collections.ConfigDict
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A feature of the examples to train, to validate and to test."""
    splits = builder.info.splits
    train = _read_split(builder, "train", feature)
    test = _read_split(builder, "test" if "test" in splits else "validation", feature)
    if {"test", "validation"} <= set(splits):
        return train, _read_split(builder, "validation", feature), test
    return *split_validation(train, dataset_config), test


def _labels(builder: Any, dataset_config: ml_collections.ConfigDict) -> Labels | None:
    """The feature `label`, if it is a class."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    label = features["label"] if "label" in features else None  # noqa: SIM401 (it has no get)
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        return None
    return Labels(*_parts(builder, "label", dataset_config), label.num_classes)


def _prepared_builder(dataset_config: ml_collections.ConfigDict) -> Any:
    """Returns a TFDS builder whose files exist, after preparing them if need be."""
    name, data_dir = dataset_config.name, dataset_config.get("data_dir", "")
    builder = preparing.find_builder(name, data_dir)
    if preparing.is_prepared(builder):
        return builder
    feature = _image_feature(builder)
    if dataset_config.get("download", True):
        try:
            preparing.prepare(name, data_dir)
            return preparing.find_builder(name, data_dir)
        except preparing.PreparationImpossibleError as error:
            obstacle = error.reason
            cause: Exception | None = error
    else:
        obstacle, cause = "config.dataset.download is False", None
    num_channels = builder.info.features[feature].shape[-1]
    embedded = "--config=configs/digits.py" if num_channels == 1 else "--config.dataset.name=photos"
    raise UserError(
        f"the data set {name!r} is not prepared in {builder.data_path}, and {obstacle}; prepare it "
        "on a machine with a network, or from files already downloaded, by: "
        f"{preparing.preparation_command(builder)} -- or try, without any download: {embedded}"
    ) from cause


def _image_feature(builder: Any) -> str:
    """Returns the name of the feature that holds the image."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = [
        name
        for name, feature in (features.items() if hasattr(features, "items") else ())
        if isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    ]
    if "image" in images:
        return "image"
    if len(images) == 1:
        return images[0]
    raise UserError(
        f"the data set {builder.name!r} has {len(images) or 'no'} features that are uint8 images; "
        "needed is one, or one called 'image': choose another data set, or save its images "
        "yourself and use --config.dataset.name=npz"
    )


def _read_split(builder: Any, split: str, feature: str) -> np.ndarray:
    return cached(builder, split, feature, lambda: _decode_split(builder, split, feature))


def _decode_split(builder: Any, split: str, feature: str) -> np.ndarray:
    import tqdm

    description = f"Decoding {builder.name} {split}"
    try:
        source = builder.as_data_source(split)
        first = np.asarray(source[0][feature])  # a label is a number
        shape = first.shape
        values = np.empty((len(source), *shape), first.dtype)
        with tqdm.tqdm(
            total=len(source), desc=description, unit=" images", delay=1.0, mininterval=1.0
        ) as progress:
            # One example at a time takes three times as long.
            for start in range(0, len(source), _EXAMPLES_PER_READ):
                indices = range(start, min(start + _EXAMPLES_PER_READ, len(source)))
                for index, example in zip(indices, source.__getitems__(indices), strict=True):
                    value = np.asarray(example[feature])
                    if value.shape != shape:
                        raise _varying_shapes(builder, split, shape, value.shape)
                    values[index] = value
                progress.update(len(indices))
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"the data set {builder.name!r} in {builder.data_path} is stored as "
            f"{builder.info.file_format}, which only TensorFlow reads; prepare it in another "
            f"directory, as array_record: {preparing.preparation_command(builder, 'DIR')}"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"the split {split!r} of the data set {builder.name!r} does not fit into memory; "
            "choose a smaller data set, or save its images as files and use "
            "--config.dataset.name=npz (.npy) or folder, which stay on the disk"
        ) from error
    except Exception as error:  # Damaged files raise whatever the C++ reader or Pillow does.
        raise UserError(
            f"the data set {builder.name!r} in {builder.data_path} cannot be read "
            f"({type(error).__name__}); prepare it again in another directory DIR and name that by "
            f"config.dataset.data_dir: {preparing.preparation_command(builder, 'DIR')}"
        ) from error
    return values


def _varying_shapes(
    builder: Any, split: str, shape: tuple[int, ...], other: tuple[int, ...]
) -> UserError:
    return UserError(
        f"the data set {builder.name!r} has images of different shapes ({list(shape)}, and "
        f"{list(other)} in the split {split!r}); images of one shape are needed: choose another "
        "data set, or resize them yourself and use --config.dataset.name=npz"
    )
