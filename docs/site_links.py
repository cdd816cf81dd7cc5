"""Hook of MkDocs: on the site, a link to a folder leads to a file of it."""

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
ENTRIES = ("results.json", "[a-z]*.py")  # figures of a run; the first example


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Completes the links of a page; the others stay as they are."""
    folder = (ROOT / page.file.src_uri).parent

    def complete(link: re.Match) -> str:
        target = folder / link[1]
        found = [file.name for pattern in ENTRIES for file in sorted(target.glob(pattern))]
        return f"]({link[1]}/{found[0]})" if found else link[0]

    return re.sub(r"\]\(([\w./-]+)\)", complete, markdown)
