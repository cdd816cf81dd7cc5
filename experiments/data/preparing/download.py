"""Source files of data sets: downloaded and verified, or named by the user and verified."""

import pathlib
import queue
import threading
from typing import Any

from experiments.data.preparing.builder import PreparationImpossibleError, summary
from experiments.system.errors import UserError

_PROBE_SECONDS = 3.0
# To connect, and between two blocks of a download.
_DOWNLOAD_TIMEOUT_SECONDS = (10.0, 60.0)
_RETRIES = 2


def download_source_files(builder: Any, directory: pathlib.Path) -> None:
    """Downloads the source files of a builder that are not yet in a directory.

    Under the names of the files there is never one whose checksum is wrong. An attempt that fails
    is repeated.
    """
    import pooch
    import requests
    import tqdm

    files = pooch.create(
        path=directory,
        base_url="",
        registry={info.filename: info.checksum for info in builder.url_infos.values()},
        urls={info.filename: url for url, info in builder.url_infos.items()},
        retry_if_failed=_RETRIES,
    )
    missing = {
        url: info
        for url, info in builder.url_infos.items()
        if not _is_intact(directory / info.filename, info.checksum)
    }
    if missing:
        require_reachable(next(iter(missing)))
    pooch.get_logger().setLevel("ERROR")  # the progress bars and the errors say it
    for url, info in missing.items():
        with tqdm.tqdm(
            desc=f"Downloading {builder.name}: {info.filename}",
            total=int(info.size),
            unit="B",
            unit_scale=True,
            mininterval=1.0,
        ) as progress:
            downloader = pooch.HTTPDownloader(progress, timeout=_DOWNLOAD_TIMEOUT_SECONDS)
            try:
                files.fetch(info.filename, downloader=downloader)
            except requests.RequestException as error:
                raise UserError(
                    f"the download of {url} failed: {summary(error)}; try again later, or download "
                    f"{info.filename} by hand and name its directory by --manual_dir=DIR"
                ) from error
            except ValueError as error:
                raise _wrong_checksum(url, str(error).partition(". Deleted")[0]) from error


def _is_intact(path: pathlib.Path, checksum: str) -> bool:
    import pooch

    return path.exists() and pooch.file_hash(str(path)) == checksum


def _wrong_checksum(place: object, difference: str) -> UserError:
    return UserError(
        f"{place} has a wrong checksum: {difference}; the file is damaged or another one: "
        "download it again, or name the directory of the right one by --manual_dir=DIR"
    )


def verify_source_files(builder: Any, directory: pathlib.Path) -> None:
    """Refuses a directory that lacks source files of a builder, or has others of their names."""
    from tensorflow_datasets.core.download import checksums

    url_infos = {info.filename: info for info in builder.url_infos.values()}
    missing = [filename for filename in url_infos if not (directory / filename).exists()]
    if missing:
        raise UserError(
            f"{directory} lacks {', '.join(missing)}, needed to prepare {builder.name!r}; download "
            f"into it: {', '.join(builder.url_infos)}"
        )
    for filename, info in url_infos.items():
        actual = checksums.compute_url_info(directory / filename)
        if actual != info:
            raise _wrong_checksum(
                directory / filename,
                f"expected {int(info.size)} bytes with SHA-256 {info.checksum}, "
                f"got {int(actual.size)} bytes with {actual.checksum}",
            )


def require_reachable(url: str) -> None:
    """Asks the host for the header of a file; raises PreparationImpossibleError after 3 seconds.

    In a thread, since the look-up of a host's name has no time limit of its own.
    """
    import requests

    outcomes: queue.Queue[Exception | None] = queue.Queue()

    def connect() -> None:
        try:
            requests.head(url, timeout=_PROBE_SECONDS).close()
            outcomes.put(None)
        except requests.RequestException as error:
            outcomes.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        error = outcomes.get(timeout=_PROBE_SECONDS)
    except queue.Empty:
        error = TimeoutError()
    if error is not None:
        raise PreparationImpossibleError(
            f"{url} cannot be reached ({type(error).__name__})",
            "use a machine with a network, or download the file by hand and name its directory by "
            "--manual_dir=DIR",
        ) from error
