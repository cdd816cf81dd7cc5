"""A folder of pictures as a data set: which files, of which split and class, in which order."""

import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import ml_collections
import numpy as np

from experiments.data.cache import cached_pieces
from experiments.data.dataset import SPLITS, Dataset, Labels, needs_labels, parts
from experiments.data.pictures import SUFFIXES, PictureError, read_picture, strict_pillow
from experiments.data.stored import Images
from experiments.system.errors import UserError
from experiments.system.paths import local_path

_PICTURES_PER_PIECE = 512
_MEANT = {"training": "train", "testing": "test"} | {split: split for split in SPLITS}
_MEANT |= dict.fromkeys(("val", "valid", "dev"), "validation")
_NAMED_FILES = 5  # at most, in a message
_THREADS = 8  # at most so many pictures are in memory in their full size


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file of the folder."""

    path: pathlib.Path
    name: str  # within its split, with "/"
    problem: str = ""  # why it is not read, if that is known without reading it

    @property
    def class_name(self) -> str:
        """The subfolder that it is in, "" if it is in none."""
        return self.name.rpartition("/")[0].partition("/")[0]


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The pictures of a split."""

    images: Images
    classes: list[str]  # of each of them
    problems: list[str]  # what was left out, and why


def load_folder(dataset_config: ml_collections.ConfigDict) -> Dataset:
    """The PNG, JPEG and WebP files of the folder `config.dataset.path`, see `read_picture`.

    They are all to train, the last tenth of them to test, unless there are subfolders `train`, and
    perhaps `test` or `validation`. Subfolders of these are classes. Pictures are in the order of
    their names; those of several classes are mixed, so that the last ones are of all classes.
    `config.dataset.bad_files` says what is done with files that cannot be read.

    Args:
        dataset_config: `config.dataset` and `data_shape`, that of the model.

    Raises:
        UserError: there are no pictures, or some of them cannot be read.
    """
    shape = tuple(dataset_config.data_shape)
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise UserError(
            f"config.model.data_shape={shape} does not fit config.dataset.name='folder', whose "
            "pictures are read in grey or in colour; choose (height, width, 1) or (..., 3)"
        )
    root = _root(dataset_config.get("path", ""))
    decoded = {
        split: _decode(split, pictures, root, dataset_config)
        for split, pictures in _splits(root).items()
    }
    _tell([problem for each in decoded.values() for problem in each.problems])
    images = {split: each.images for split, each in decoded.items()}
    labels = _labels(decoded, dataset_config) if needs_labels(dataset_config) else None
    return Dataset("folder", *parts(images, dataset_config), max_value=255, labels=labels)


def _root(path: str) -> pathlib.Path:
    try:
        root = local_path(path, "config.dataset.path")
        is_folder = root.is_dir()
    except (OSError, ValueError):  # Too long a name, a null byte.
        is_folder = False
    if not path or not is_folder:
        raise UserError(
            f"config.dataset.path={path!r} is not a folder; name one that holds "
            f"{', '.join(SUFFIXES)} files"
        )
    return root.resolve()


def _splits(root: pathlib.Path) -> dict[str, list[Picture]]:
    """The pictures of each split, in their order; at least those of `train`."""
    _check_names(root)
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if "train" not in folders:
        if folders:
            raise UserError(
                f"config.dataset.path={root} has a subfolder {next(iter(folders))!r} but none "
                "called 'train'; add it, or give the other one another name"
            )
        folders = {"train": root}
    for top in folders.values():
        if top.is_symlink():
            raise UserError(f"{top} is a link, which is not followed; put the pictures there")
    if list(folders.values()) == [root / "train"]:
        _check_is_a_split(root)
    splits = {split: mixed(list(_pictures(root, top))) for split, top in folders.items()}
    for split, pictures in splits.items():
        if not pictures:
            raise UserError(
                f"{folders[split]} holds no pictures; allowed are {', '.join(SUFFIXES)} files, "
                "in it or in its subfolders"
            )
    return splits


def _check_names(root: pathlib.Path) -> None:
    """Refuses subfolders that look like splits, whose pictures would be trained on or left out."""
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        _unreadable(error)
    for name in names:
        if name not in SPLITS and name.lower() in _MEANT and (root / name).is_dir():
            raise UserError(
                f"config.dataset.path={root} has a subfolder {name!r}, which would not be read as "
                f"a split; call it {_MEANT[name.lower()]!r}, or move it elsewhere"
            )


def _check_is_a_split(root: pathlib.Path) -> None:
    """Refuses a folder `train`, the only split, beside pictures that would be left out."""
    names = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    for path in (root / name for name in sorted(names - {"train"})):
        if any(_pictures(root, path)) if path.is_dir() else path.suffix.lower() in SUFFIXES:
            raise UserError(
                f"config.dataset.path={root} has a subfolder 'train' beside {path.name!r}, whose "
                "pictures would be left out; if 'train' is a class, move the folders of all "
                f"classes into one called 'train', else move {path.name!r} elsewhere"
            )


def _pictures(root: pathlib.Path, top: pathlib.Path) -> Iterator[Picture]:
    """Files below `top` by their suffixes, but hidden ones; links lead nowhere but into `root`."""
    for folder, subfolders, files in os.walk(top, onerror=_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        linked = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *linked):
            path = pathlib.Path(folder, name)
            is_picture = path.suffix.lower() in SUFFIXES and not name.startswith(".")
            if name in linked:
                yield Picture(path, path.relative_to(top).as_posix(), "is a link to a folder")
            elif is_picture:
                yield Picture(path, path.relative_to(top).as_posix(), _problem_of(root, path))


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename} cannot be read ({error.strerror}); let this user read it, or move it"
    ) from error


def _problem_of(root: pathlib.Path, path: pathlib.Path) -> str:
    if stat.S_ISREG(path.lstat().st_mode):
        return ""
    try:
        target = path.resolve(strict=True)
        is_regular = stat.S_ISREG(target.stat().st_mode)
    except (OSError, RuntimeError):  # A link to nothing, or to itself.
        return "is a link that leads nowhere"
    if not target.is_relative_to(root):
        return "is a link that leads out of the folder"
    return "" if is_regular else "is no regular file"


def mixed(pictures: list[Picture]) -> list[Picture]:
    """In the order of their names; of several classes so that each stretch has all of them."""
    classes: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda picture: picture.name):
        classes.setdefault(picture.class_name, []).append(picture)
    places = [
        ((2 * place + 1) / len(members), name, place)
        for name, members in classes.items()
        for place in range(len(members))
    ]
    return [classes[name][place] for _, name, place in sorted(places)]


def _decode(
    split: str, pictures: list[Picture], root: pathlib.Path, config: ml_collections.ConfigDict
) -> Decoded:
    """The images of a split, from the cache if no file has changed.

    Raises:
        UserError: `bad_files` is "refuse", and one cannot be read; or none can.
    """
    import PIL

    shape = tuple(config.data_shape)
    refuses = config.get("bad_files", "refuse") == "refuse"
    images, bad = cached_pieces(
        f"folder-{split}-{'x'.join(map(str, shape))}",
        root,
        [PIL.__version__, [_identity(picture) for picture in pictures]],
        lambda: _pieces(split, pictures, shape, refuses),
    )
    problems = [f"{pictures[place].path} {reason}" for place, reason in bad]
    if problems and refuses:  # known from a run that left them out
        raise _refusal(problems)
    if not len(images):
        raise UserError(f"no picture of {split!r} can be read: {_listed(problems)}")
    left_out = {place for place, _ in bad}
    kept = [each for place, each in enumerate(pictures) if place not in left_out]
    return Decoded(images, [each.class_name for each in kept], problems)


def _identity(picture: Picture) -> list[Any]:
    """What its image depends on; the time of the last change of state cannot be set back."""
    if picture.problem:
        return [picture.name, picture.problem]
    status = picture.path.stat()
    return [picture.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _pieces(
    split: str, pictures: list[Picture], shape: tuple[int, int, int], refuses: bool
) -> Iterator[tuple[np.ndarray, list[tuple[int, str]]]]:
    """Images [num, *shape] of some pictures after others, and which are bad, and why."""
    import tqdm

    def read(picture: Picture) -> np.ndarray | str:
        try:
            return picture.problem or read_picture(picture.path, shape)
        except PictureError as error:
            return str(error)

    with (
        strict_pillow(),
        ThreadPoolExecutor(_THREADS) as executor,
        tqdm.tqdm(
            total=len(pictures),
            desc=f"Decoding {split}",
            unit=" images",
            delay=1.0,
            mininterval=1.0,
        ) as progress,
    ):
        for start in range(0, len(pictures), _PICTURES_PER_PIECE):
            piece = pictures[start : start + _PICTURES_PER_PIECE]
            of_piece = list(executor.map(read, piece))
            bad = [(start + i, found) for i, found in enumerate(of_piece) if isinstance(found, str)]
            if bad and refuses:
                raise _refusal([f"{pictures[place].path} {reason}" for place, reason in bad])
            images = [found for found in of_piece if not isinstance(found, str)]
            yield np.array(images, np.uint8).reshape(-1, *shape), bad
            progress.update(len(piece))


def _refusal(problems: list[str]) -> UserError:
    return UserError(
        f"{_listed(problems)}; repair or remove it, or leave out such files by "
        "--config.dataset.bad_files=skip"
    )


def _listed(problems: list[str]) -> str:
    more = len(problems) - _NAMED_FILES
    return "; ".join(problems[:_NAMED_FILES]) + (f"; and {more} more" if more > 0 else "")


def _tell(problems: list[str]) -> None:
    from experiments.distributed.processes import tell  # imports JAX

    if problems:
        files = "1 file" if len(problems) == 1 else f"{len(problems)} files"
        tell(f"note: left out {files}: {_listed(problems)}")


def _labels(decoded: dict[str, Decoded], config: ml_collections.ConfigDict) -> Labels:
    """The class of each picture, those of `train` numbered in the order of their names."""
    names = sorted(set(decoded["train"].classes))
    for split, of_split in decoded.items():
        unknown = sorted(set(of_split.classes) - set(names))
        if "" in of_split.classes or unknown:
            problem = "has pictures outside of such subfolders"
            if "" not in of_split.classes:
                problem = f"has the class {unknown[0]!r}, which 'train' has not"
            raise UserError(
                "config.dataset.condition='label' needs each picture in a subfolder that is called "
                f"like its class, but {split!r} {problem}; move them, or choose another condition"
            )
    labels = {
        split: np.array([names.index(name) for name in of_split.classes], np.int32)
        for split, of_split in decoded.items()
    }
    return Labels(*parts(labels, config), num_classes=len(names))
