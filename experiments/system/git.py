"""The commit of this code."""

import os
import pathlib
import re
import subprocess

from experiments.system.errors import UserError

VARIABLE = "SERE_JAX_COMMIT"
ROOT = pathlib.Path(__file__).resolve().parents[2]


def git_commit() -> str:
    """The commit of this code, with '-dirty' if files but kept results differ.

    Where there is no repository, what the environment variable SERE_JAX_COMMIT says, or 'unknown'.

    Raises:
        UserError: the variable is read, and names no commit.
    """
    try:
        # Installed into somebody else's repository, HEAD would be that repository's.
        if pathlib.Path(_git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return _named_commit()
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return _git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return _named_commit()


def _git(*arguments):
    output = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, check=True, timeout=10
    ).stdout
    return os.fsdecode(output).strip()


def _named_commit():
    commit = os.environ.get(VARIABLE, "").strip().lower()
    if commit and not re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", commit):
        raise UserError(
            f"{VARIABLE}={os.environ[VARIABLE]!r} must be a commit, 7 to 40 hexadecimal digits, "
            "with -dirty after it if files differ; correct it, or unset it"
        )
    return commit or "unknown"
