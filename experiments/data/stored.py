"""Images that stay in their file, and how parts of images are read wherever they are."""

import math
import os
import pathlib
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.system.errors import UserError

PIECE_BYTES = 2**26  # what is read of a file at once, where all of it passes by


class _OpenFile:
    """A file that is open for as long as somebody refers to it."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


class StoredImages:
    """uint8 images [num, height, width, channels] in a file, in C order, read when they are needed.

    A slice is images in the file as well. By an array of indices, or `numpy.asarray`, come
    the images themselves. They are read and not mapped: what was read is no memory of the process
    once it is dropped, and a file that shrinks meanwhile is an error and no signal.

    Attributes:
        shape: [num, height, width, channels].
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, file: pathlib.Path | _OpenFile, offset: int, shape: tuple[int, ...]):
        """`offset` is that of the first image, in bytes."""
        self.shape = shape
        self._offset = offset
        self._file = file if isinstance(file, _OpenFile) else _OpenFile(file)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes, of which none are in memory."""
        return self.size

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            assert step == 1, which
            offset = self._offset + start * self._bytes_per_image
            shape = (max(stop - start, 0), *self.shape[1:])
            return StoredImages(self._file, offset, shape)
        indices = np.asarray(which)
        out = np.empty((indices.size, *self.shape[1:]), np.uint8)
        self.read(indices.ravel(), out)
        return out.reshape(*indices.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, np.uint8)
        self._read_into(out, self._offset)
        return out if dtype is None else out.astype(dtype, copy=False)

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Reads the images of these numbers [n] into `out` [n, height, width, channels]."""
        for place in np.argsort(indices, kind="stable"):  # as they lie on the disk
            index = int(indices[place])
            if not 0 <= index < len(self):
                raise IndexError(f"image {index} of {len(self)}")
            self._read_into(out[place], self._offset + index * self._bytes_per_image)

    @property
    def _bytes_per_image(self) -> int:
        return math.prod(self.shape[1:])

    def _read_into(self, out: np.ndarray, offset: int) -> None:
        buffer = out.reshape(-1).data
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._file.descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise self._lost(str(error.strerror)) from error
            if not count:
                raise self._lost("it is shorter than it was")
            done += count

    def _lost(self, reason: str) -> UserError:
        return UserError(
            f"{self._file.path} can no longer be read ({reason}); restore it, and the same command "
            "goes on from the last checkpoint"
        )


Images = np.ndarray | StoredImages


def pieces(images: Images) -> Iterator[np.ndarray]:
    """All images in their order, as arrays of about `PIECE_BYTES`."""
    if isinstance(images, np.ndarray):
        yield images
        return
    num = max(1, PIECE_BYTES // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), num):
        yield np.asarray(images[start : start + num])


def exceeds(images: Images, value: int) -> bool:
    """Whether one of the pixels has a larger value; reads no further than the first such piece."""
    return any(piece.max(initial=0) > value for piece in pieces(images))


def copy_images(images: Images, indices: np.ndarray, out: np.ndarray) -> None:
    """Copies the images of these numbers [n] into `out` [n, height, width, channels]."""
    if isinstance(images, StoredImages):
        images.read(indices, out)
    else:
        np.take(images, indices, axis=0, out=out, mode="clip")  # "raise" would buffer all of it
