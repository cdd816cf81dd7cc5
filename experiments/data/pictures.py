"""One picture file as an image of a given shape, read as a person would expect."""

import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_WHITE = (255, 255, 255, 255)


class PictureError(Exception):
    """Why a file is no picture that can be read."""


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Pictures that are larger than Pillow takes for safe are errors; of others nothing is said.

    Warnings are those of the whole process: enter it before threads call `read_picture`.
    """
    import PIL.Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        yield


def read_picture(path: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The picture as uint8 of `shape`, (height, width, 1 or 3).

    It is turned upright as EXIF says, put on white where it is transparent, cut to the middle part
    with the sides' ratio of `shape`, and resized by bicubic interpolation that takes the mean over
    what a pixel covers. Of 16 bits the upper 8 count; of an animation its first frame.

    Raises:
        PictureError: it cannot be read.
    """
    import PIL.Image
    import PIL.ImageOps

    height, width, channels = shape
    try:
        with path.open("rb") as file, PIL.Image.open(file, formats=_FORMATS) as image:
            image.load()
            picture = _in_mode(_upright(image), "L" if channels == 1 else "RGB")
            fitted = PIL.ImageOps.fit(picture, (width, height), PIL.Image.Resampling.BICUBIC)
    except PIL.UnidentifiedImageError:
        raise PictureError("is no PNG, JPEG or WebP picture") from None
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise PictureError(f"is too large ({str(error).partition(',')[0]})") from error
    except Exception as error:  # Damaged files raise whatever the decoders do.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"cannot be read ({reason})") from error
    return np.asarray(fitted, np.uint8).reshape(shape)


def _upright(image: Any) -> Any:
    import PIL.ImageOps

    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # Damaged EXIF; the picture itself is not.
        return image


def _in_mode(image: Any, mode: str) -> Any:
    """A copy in the mode "L" or "RGB"."""
    import PIL.Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut at 255
        image = _upper_byte(image)
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # Of 16-bit colours Pillow keeps the upper 8 bits, but the transparent one is as it was.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, _WHITE)
        image = PIL.Image.alpha_composite(white, image)
    return image.convert(mode)


def _upper_byte(image: Any) -> Any:
    """Of grey levels 0..65535, and of the one that is transparent, if any."""
    import PIL.Image

    values = np.asarray(image).astype(np.int64)
    grey = PIL.Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        grey = PIL.Image.merge("LA", (grey, PIL.Image.fromarray(alpha)))
    return grey
