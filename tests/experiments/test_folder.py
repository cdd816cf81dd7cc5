"""Pictures of a folder: which are read, as what and in which order; the cache is never old."""

import os
import pathlib
import struct
import time
import zlib

import ml_collections
import numpy as np
import PIL.Image
import pytest

from experiments.data import Dataset, load_dataset
from experiments.data.pictures import PictureError, read_picture, strict_pillow
from experiments.system.errors import UserError


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch) -> pathlib.Path:
    """The tests neither use nor fill the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def load(path, shape=(4, 5, 3), **fields) -> Dataset:
    defaults = {"name": "folder", "path": str(path), "validation_size": 0.1}
    return load_dataset(ml_collections.ConfigDict(defaults | fields), shape)


def refusal(path, shape=(4, 5, 3), **fields) -> str:
    with pytest.raises(UserError) as info:
        load(path, shape, **fields)
    assert "\n" not in str(info.value)
    return str(info.value)


def random_pixels(seed, *shape) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: pathlib.Path, pixels, **options) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(path, **options)
    return path


def save_many(folder, names, seed=0) -> dict[str, np.ndarray]:
    pixels = {name: random_pixels([seed, i], 4, 5, 3) for i, name in enumerate(names)}
    for name, values in pixels.items():
        save(folder / name, values)
    return pixels


# ------------------------------------------------------------------------------- which pictures


@pytest.mark.parametrize("with_splits", [False, True])
def test_a_folder_is_the_npz_of_the_same_files(with_splits, folder, tmp_path):
    names = [f"{i:02}.png" for i in range(30)]
    if with_splits:
        pixels = {}
        for seed, split in enumerate(("train", "test", "validation")):
            (folder / split).mkdir()
            of_split = save_many(folder / split, names[: 30 - 7 * seed], seed)
            pixels[split] = np.stack(list(of_split.values()))
    else:
        pixels = {"train": np.stack(list(save_many(folder, names).values()))}
    np.savez(tmp_path / "same.npz", **pixels)
    expected = load(tmp_path / "same.npz", name="npz")
    for _ in range(2):  # decoded, then cached
        found = load(folder)
        for split in ("train", "validation", "test"):
            images = np.asarray(getattr(found, split))
            np.testing.assert_array_equal(images, getattr(expected, split))
        assert found.fingerprint == expected.fingerprint
        assert found.max_value == 255


def test_pictures_are_found_by_their_suffixes_below_the_folder(folder):
    kinds = ["a.PNG", "b/c.jpg", "b/d.jpeg", "b/e/f.webp", "b/e/g.png", "h.png", "i.png", "j.png"]
    save_many(folder, kinds)
    save_many(folder, ["._a.png", ".hidden/a.png"])
    (folder / "notes.txt").write_text("mine")
    dataset = load(folder)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == len(kinds)


def test_classes_are_mixed_in_every_part_and_labels_go_with_their_pictures(folder):
    colours = {"a": 0, "b": 90, "c": 200}
    sizes = {"a": 60, "b": 30, "c": 30}
    for name, colour in colours.items():
        for i in range(sizes[name]):
            save(folder / name / "more" / f"{i}.png", np.full((2, 2), colour, np.uint8))
    dataset = load(folder, (2, 2, 1), condition="label")
    assert dataset.labels.num_classes == 3
    for split, num in (("test", 12), ("validation", 11), ("train", 97)):
        images, labels = np.asarray(getattr(dataset, split)), getattr(dataset.labels, split)
        assert len(images) == num
        np.testing.assert_array_equal(images[:, 0, 0, 0], np.array([0, 90, 200])[labels])
        shares = np.bincount(labels, minlength=3) / num
        np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.6 / num)


def test_labels_that_are_not_there_are_refused(folder):
    save_many(folder / "train", ["a/1.png", "a/2.png", "b/1.png"])
    save_many(folder / "test", ["a/1.png"])
    assert load(folder, condition="label", validation_size=1).labels.num_classes == 2
    save_many(folder / "test", ["c/1.png"])
    message = refusal(folder, condition="label")
    assert "'test' has the class 'c', which 'train' has not" in message
    save_many(folder / "train", ["1.png"])
    assert "'train' has pictures outside of such" in refusal(folder, condition="label")
    assert load(folder).labels is None


@pytest.mark.parametrize("other", ["plane/1.png", "1.png"])
def test_a_class_called_train_is_not_taken_for_the_only_split(other, folder):
    save_many(folder, ["train/1.png", "train/2.png", "train/3.png", other])
    message = refusal(folder)
    assert f"a subfolder 'train' beside {other.partition('/')[0]!r}, whose pictures" in message
    assert "the folders of all classes into one called 'train'" in message
    (folder / other).unlink()
    (folder / "notes.txt").write_text("no picture")
    assert len(load(folder, validation_size=1).train) == 1


def test_folders_without_pictures_are_refused(folder, tmp_path):
    for path in ("", "absent", tmp_path / "absent", "\0"):
        assert "is not a folder" in refusal(path)
    assert "holds no pictures; allowed are .png, .jpg, .jpeg, .webp" in refusal(folder)
    save_many(folder, ["test/1.png"])
    assert "has a subfolder 'test' but none called 'train'" in refusal(folder)
    save_many(folder, ["train/1.png", "train/2.png"])
    (folder / "test" / "1.png").unlink()
    assert "test holds no pictures" in refusal(folder)
    assert "data_shape=(4, 5, 2) does not fit" in refusal(folder, (4, 5, 2))


def test_what_killed_decodings_left_in_the_cache_is_removed_after_a_day(folder, cache_home):
    save_many(folder, ["1.png", "2.png", "3.png"])
    load(folder)
    (file,) = cache_home.rglob("*.raw")
    left, others = file.with_name(f".{file.name}.7.tmp"), file.with_name(f".{file.name}.8.tmp")
    for path in (left, others):
        path.write_bytes(b"half")
    yesterday = time.time() - 86401
    os.utime(left, (yesterday, yesterday))
    save_many(folder, ["4.png"])
    load(folder)
    assert not left.exists() and others.exists()  # which may be of a process that writes


@pytest.mark.parametrize("with_train", [True, False])
@pytest.mark.parametrize(
    ("name", "split"),
    [("Train", "train"), ("TEST", "test"), ("testing", "test"), ("val", "validation")],
)
def test_subfolders_that_look_like_splits_are_refused(name, split, with_train, folder):
    save_many(folder, [f"{name}/{i}.png" for i in range(20)])
    if with_train:
        save_many(folder, [f"train/{i}.png" for i in range(20)])
    message = refusal(folder)
    assert f"subfolder {name!r}, which would not be read" in message
    assert f"call it {split!r}" in message


def test_links_lead_nowhere_but_into_the_folder(folder, tmp_path):
    pixels = save_many(folder, ["0.png", "1.png", "2.png"])
    secret = save(tmp_path / "secret" / "s.png", random_pixels(9, 4, 5, 3))
    (folder / "3.png").symlink_to(folder / "1.png")
    dataset = load(folder)
    images = np.concatenate([dataset.train, dataset.validation, dataset.test])
    expected = [pixels[name] for name in ("0.png", "1.png", "2.png", "1.png")]
    np.testing.assert_array_equal(images, expected)
    for target, problem in (
        (secret, "is a link that leads out of the folder"),
        (secret.parent, "is a link to a folder"),
        (tmp_path / "absent", "is a link that leads nowhere"),
        (folder / "4.png", "is a link that leads nowhere"),
    ):
        (folder / "4.png").symlink_to(target)
        assert f"4.png {problem}" in refusal(folder)
        skipped = load(folder, bad_files="skip")
        assert skipped.fingerprint == dataset.fingerprint
        (folder / "4.png").unlink()
    os.mkfifo(folder / "5.png")
    assert "5.png is no regular file" in refusal(folder)
    (folder / "train").symlink_to(secret.parent)
    assert "train is a link" in refusal(folder)


# ---------------------------------------------------------------------------------- as what


def read(path, *shape) -> np.ndarray:
    with strict_pillow():
        return read_picture(path, shape)


def test_the_middle_is_cut_out_and_each_pixel_is_the_mean_of_what_it_covers(tmp_path):
    blocks = random_pixels(0, 4, 4)
    wide = np.concatenate([np.full((32, 16), 255, np.uint8), blocks.repeat(8, 0).repeat(8, 1)], 1)
    wide = np.concatenate([wide, np.zeros((32, 16), np.uint8)], 1)
    for pixels in (wide, wide.T):
        middle = pixels[:, 16:48] if pixels.shape[1] > 32 else pixels[16:48]
        found = read(save(tmp_path / "a.png", pixels), 2, 2, 1)[..., 0]
        means = middle.reshape(2, 16, 2, 16).mean(axis=(1, 3))
        assert np.abs(found - means).max() < 40  # bicubic kernels reach beyond a pixel
    smooth = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    found = read(save(tmp_path / "b.png", smooth), 8, 8, 1)[..., 0]
    means = smooth.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(found[:, 1:-1], means[:, 1:-1], atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation, tmp_path):
    pixels = random_pixels(1, 6, 8, 3)
    # How the standard says that row and column 0 of the file lie in the upright picture.
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels.swapaxes(0, 1)[::-1],
        7: pixels.swapaxes(0, 1)[::-1, ::-1],
        8: pixels.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(read(path, 6, 8, 3), pixels)


def test_of_16_bits_the_upper_8_count(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (4, 5)).astype(np.uint16)
    values[0, :3] = 0, 256, 65535
    path = save(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read(path, 4, 5, 1)[..., 0], values // 256)
    np.testing.assert_array_equal(read(path, 4, 5, 3), np.stack([values // 256] * 3, -1))
    save(tmp_path / "b.png", PIL.Image.fromarray(values), transparency=int(values[2, 2]))
    expected = np.where(values == values[2, 2], 255, values // 256)
    np.testing.assert_array_equal(read(tmp_path / "b.png", 4, 5, 1)[..., 0], expected)


def on_white(pixels, alpha):
    share = alpha[..., None] / 255
    return share * pixels + (1 - share) * 255


def test_what_is_transparent_is_white(tmp_path):
    pixels, alpha = random_pixels(2, 4, 5, 3), random_pixels(3, 4, 5)
    path = save(tmp_path / "a.png", np.dstack([pixels, alpha]))
    np.testing.assert_allclose(read(path, 4, 5, 3), on_white(pixels, alpha), atol=1)
    path = save(tmp_path / "b.png", np.dstack([pixels[..., 0], alpha]))
    grey = on_white(pixels[..., :1], alpha)
    np.testing.assert_allclose(read(path, 4, 5, 1), grey, atol=1)

    palette = PIL.Image.fromarray(random_pixels(4, 4, 5) % 3).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    indices = np.asarray(palette)
    path = save(tmp_path / "c.png", palette, transparency=1)
    colours = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    np.testing.assert_array_equal(read(path, 4, 5, 3), colours[indices])


def test_of_16_bit_colours_one_may_be_transparent(tmp_path):
    """A file as the PNG standard writes it; Pillow writes none of this kind."""
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    values = np.full((4, 5, 3), 40_000, ">u2")
    values[1:] = 1_000
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">HHH", 40_000, 40_000, 40_000))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    expected = np.where(values == 40_000, 255, values >> 8)
    np.testing.assert_array_equal(read(path, 4, 5, 3), expected)


def test_colours_of_all_kinds_become_those_that_are_asked_for(tmp_path):
    flat = np.ones((4, 5, 1), int)
    ink = PIL.Image.new("CMYK", (5, 4), (255, 0, 255, 0))  # green
    found = read(save(tmp_path / "a.jpg", ink), 4, 5, 3)
    assert (found[..., 1] > 200).all() and (found[..., [0, 2]] < 60).all()
    bits = random_pixels(5, 4, 5) % 2 == 1
    found = read(save(tmp_path / "b.png", bits), 4, 5, 1)[..., 0]
    np.testing.assert_array_equal(found, 255 * bits)
    grey = PIL.Image.new("L", (5, 4), 77)
    np.testing.assert_array_equal(
        read(save(tmp_path / "c.png", grey), 4, 5, 3), 77 * flat + [0] * 3
    )
    red = PIL.Image.new("RGB", (5, 4), (255, 0, 0))
    found = read(save(tmp_path / "d.png", red), 4, 5, 1)
    np.testing.assert_array_equal(found, 76 * flat)  # ITU-R 601: 0.299 of 255


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_of_an_animation_the_first_frame_counts(suffix, tmp_path):
    frames = [PIL.Image.new("RGB", (5, 4), colour) for colour in ("#102030", "#405060", "#708090")]
    path = tmp_path / f"a.{suffix}"
    save(path, frames[0], save_all=True, append_images=frames[1:], lossless=True)
    with PIL.Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(read(path, 4, 5, 3)[0, 0], [0x10, 0x20, 0x30])


def bomb(path):
    """A PNG that says it has 30000 x 30000 pixels."""
    save(path, PIL.Image.new("L", (1, 1)))
    content = bytearray(path.read_bytes())
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(content)


def large(path):
    """One that Pillow by itself only warns of."""
    save(path, PIL.Image.new("1", (10_000, 10_000)))


def truncated(path):
    save(path.with_suffix(".jpg"), random_pixels(6, 40, 40, 3))
    content = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").unlink()
    path.write_bytes(content[: len(content) // 2])


BAD = {
    "truncated": (truncated, "cannot be read (image file is truncated"),
    "bomb": (bomb, "is too large (Image size (900000000 pixels) exceeds limit"),
    "large": (large, "is too large (Image size (100000000 pixels) exceeds limit"),
    "text": (lambda path: path.write_text("no picture"), "is no PNG, JPEG or WebP picture"),
    "empty": (lambda path: path.write_bytes(b""), "is no PNG, JPEG or WebP picture"),
    "gif": (lambda path: save(path, random_pixels(0, 4, 5), format="GIF"), "is no PNG, JPEG or"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_or_named_and_left_out(name, folder, capsys):
    save_many(folder, [f"{i}.png" for i in range(6)])
    expected = load(folder).fingerprint
    make, problem = BAD[name]
    make(folder / "2b.png")
    message = refusal(folder)
    assert f"2b.png {problem}" in message and "config.dataset.bad_files=skip" in message
    for _ in range(2):  # decoded, then cached
        capsys.readouterr()
        assert load(folder, bad_files="skip").fingerprint == expected
        assert f"left out 1 file: {folder / '2b.png'} {problem}" in capsys.readouterr().err
    assert f"2b.png {problem}" in refusal(folder)  # though the cache holds the others


def test_nothing_but_bad_files_is_refused(folder):
    for i in range(7):
        (folder / f"{i}.png").write_text("")
    message = refusal(folder, bad_files="skip")
    assert "no picture of 'train' can be read" in message and "and 2 more" in message
    with pytest.raises(PictureError):
        read(folder / "0.png", 4, 5, 3)


# ----------------------------------------------------------------------------------- the cache


def test_the_cache_is_used_until_a_file_changes(folder, cache_home, monkeypatch):
    pixels = save_many(folder, [f"{i}.png" for i in range(10)])
    load(folder)
    with monkeypatch.context() as context:
        context.setattr("experiments.data.folder.read_picture", None)  # no picture is decoded
        load(folder)
    times = os.stat(folder / "3.png")
    replaced = random_pixels(77, 4, 5, 3)
    save(folder / "3.png", replaced)
    os.utime(folder / "3.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    np.testing.assert_array_equal(np.asarray(load(folder).train)[3], replaced)
    assert load(folder, (2, 2, 3)).image_shape == (2, 2, 3)
    (folder / "0.png").unlink()
    np.testing.assert_array_equal(np.asarray(load(folder).train)[0], pixels["1.png"])


@pytest.mark.parametrize("damage", ["flip", "cut", "no record"])
def test_a_damaged_cache_is_made_anew(damage, folder, cache_home):
    save_many(folder, [f"{i}.png" for i in range(10)])
    expected = load(folder).fingerprint
    (values,) = (cache_home / "sere_jax").glob("*.raw")
    content = bytearray(values.read_bytes())
    if damage == "flip":
        content[17] ^= 4
    elif damage == "cut":
        del content[100:]
    else:
        values.with_suffix(".json").unlink()
    values.write_bytes(content)
    assert load(folder).fingerprint == expected
    assert load(folder).fingerprint == expected


def test_without_a_cache_pictures_are_in_memory(folder, tmp_path, monkeypatch):
    save_many(folder, [f"{i}.png" for i in range(10)])
    expected = load(folder).fingerprint
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    dataset = load(folder)
    assert isinstance(dataset.train, np.ndarray) and dataset.fingerprint == expected
