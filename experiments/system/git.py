"""The commit of this code."""

import os
import pathlib
import subprocess


def git_commit() -> str:
    """The commit of this code, with '-dirty' if files but kept results differ.

    Where there is no repository, the environment variable GIT_COMMIT, or 'unknown'.
    """
    unknown = os.environ.get("GIT_COMMIT", "unknown")
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*arguments):
        output = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, check=True, timeout=10
        ).stdout
        return os.fsdecode(output).strip()

    try:
        # Installed into somebody else's repository, HEAD would be that repository's.
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return unknown
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return unknown
