"""Error codes of the system, in what Python and tensorstore raise."""

import errno
import re

# Rights, open files, memory, a file server that does not answer.
_REFUSALS = "EACCES EPERM EMFILE ENFILE ENOMEM ESTALE ETIMEDOUT ENOTCONN EHOSTDOWN"


def error_code(error: Exception) -> int | None:
    """That of an OSError, of a MemoryError, or of a ValueError of tensorstore; None: of no such."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else getattr(error, "errno", None)


def refusal_of_the_system(error: Exception) -> int | None:
    """The code of an error that says nothing of the file that was to be read; None: of others."""
    code = error_code(error)
    return code if code in [getattr(errno, name) for name in _REFUSALS.split()] else None
