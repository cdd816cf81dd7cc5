"""How far a long computation has come, on stderr."""

import sys

from tqdm import tqdm

_TERMINAL_REFRESH_SECONDS = 0.2
_LOG_FILE_REFRESH_SECONDS = 10.0


def progress_bar(
    total: int, initial: int, description: str, *, disable: bool = False, unit: str = " steps"
) -> tqdm:
    """Makes a tqdm bar on stderr; call its `update` after each step.

    Where stderr is no terminal, such as the log of a batch job, the bar is printed once every
    10 seconds. Give `refresh=False` to `set_postfix`, which otherwise prints at every call.

    Args:
        total: number of steps of the whole run.
        initial: number of steps done before, in the run that is resumed.
        description: text in front of the bar.
        disable: whether to print nothing.
        unit: what is counted.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        disable=disable,
        file=sys.stderr,
        unit=unit,
        dynamic_ncols=on_terminal,
        mininterval=_TERMINAL_REFRESH_SECONDS if on_terminal else _LOG_FILE_REFRESH_SECONDS,
    )
