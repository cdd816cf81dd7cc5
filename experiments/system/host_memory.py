"""Keeps freed memory in the process, for training on CPUs."""

import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Tells glibc's malloc not to return freed memory to the kernel.

    XLA allocates the temporary buffers of every step anew; by default glibc maps and unmaps the
    large ones each time, and the page faults cost up to 40 % of a step. Does nothing elsewhere.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 2**28)
