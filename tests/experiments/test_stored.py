"""Images in a file, and work that is done ahead."""

import threading

import numpy as np
import pytest

from experiments.data import stored
from experiments.data.stored import StoredImages, copy_images, exceeds, pieces
from experiments.system.ahead import ahead
from experiments.system.errors import UserError

HEADER = b"12345"


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (23, 3, 4, 2), np.uint8)


@pytest.fixture
def images(pixels, tmp_path):
    (tmp_path / "images").write_bytes(HEADER + pixels.tobytes() + b"what follows")
    return StoredImages(tmp_path / "images", len(HEADER), pixels.shape)


def test_parts_of_images_in_a_file_are_those_of_the_array(images, pixels):
    assert (images.shape, len(images), images.nbytes) == (pixels.shape, 23, pixels.nbytes)
    for which in (slice(None), slice(5), slice(-4, None), slice(3, 9), slice(9, 3), slice(20, 99)):
        part = images[which]
        assert isinstance(part, StoredImages)
        np.testing.assert_array_equal(part, pixels[which])
        assert part.shape == pixels[which].shape
        np.testing.assert_array_equal(part[1:], pixels[which][1:])
    for which in (7, [3, 3, 22, 0], np.array([[1, 2], [20, 5]])):
        np.testing.assert_array_equal(images[which], pixels[which])
    for which in ([23], [-1]):
        with pytest.raises(IndexError):
            images[which]
    with pytest.raises(IndexError):
        images[:3][[3]]


def test_copies_are_of_the_images_that_are_asked_for(images, pixels):
    indices = np.array([5, 0, 22, 5, 11])
    for source in (images, pixels):
        out = np.zeros((6, *pixels.shape[1:]), np.uint8)
        copy_images(source, indices, out[:5])
        np.testing.assert_array_equal(out[:5], pixels[indices])
        assert not out[5].any()


def test_all_images_pass_by_in_pieces(images, pixels, monkeypatch):
    monkeypatch.setattr(stored, "PIECE_BYTES", 5 * 24 + 7)
    assert [len(piece) for piece in pieces(images)] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate(list(pieces(images))), pixels)
    largest = int(pixels.max())
    for source in (images, pixels):
        assert exceeds(source, largest - 1) and not exceeds(source, largest)
    assert not exceeds(images[:0], 0)


def test_a_file_that_shrinks_is_one_error(images, tmp_path):
    with (tmp_path / "images").open("r+b") as file:
        file.truncate(10 * 24)
    np.testing.assert_array_equal(images[[3]].shape, (1, 3, 4, 2))
    for read in (lambda: images[[20]], lambda: np.asarray(images)):
        with pytest.raises(UserError, match=r"images can no longer be read \(it is shorter"):
            read()


def test_the_file_may_be_replaced_while_it_is_read(images, pixels, tmp_path):
    (tmp_path / "new").write_bytes(bytes(pixels.nbytes + 99))
    (tmp_path / "new").replace(tmp_path / "images")
    np.testing.assert_array_equal(images[4:], pixels[4:])


def test_what_comes_next_is_computed_while_the_result_before_is_in_use():
    begun, threads = [], set()
    next_has_begun = {i: threading.Event() for i in range(5)}

    def compute(i):
        begun.append(i)
        threads.add(threading.current_thread())
        next_has_begun[i].set()
        return i * i

    results = []
    for i, result in enumerate(ahead(compute, range(4))):
        assert i == 3 or next_has_begun[i + 1].wait(timeout=60)
        assert len(begun) <= i + 2  # and not more than the next one
        results.append(result)
    assert results == [0, 1, 4, 9] and begun == [0, 1, 2, 3]
    assert threading.current_thread() not in threads
    assert list(ahead(compute, [])) == []


def test_an_error_comes_in_the_place_of_its_result():
    results = ahead(lambda i: 6 // i, [3, 2, 0, 1])
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
