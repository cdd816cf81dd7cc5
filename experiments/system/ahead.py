"""Work that is done ahead, in a thread."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")


def ahead(compute: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """compute(item) of each item in turn; the next one is computed while this one is in use.

    At most two results are alive, if the caller drops one before it asks for the next. An error
    of `compute` is raised where its result would have come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as executor:
        pending: Future[T] | None = None
        for item in items:
            following = executor.submit(compute, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
