"""The API reference holds what users call, and nothing of other libraries."""

import html
import os
import pathlib
import re
import subprocess
import sys

import pytest

import sere_jax

TEMPLATES = pathlib.Path(__file__).parents[1] / "docs" / "templates"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Function of a module to the text of its page and the names that have an entry there."""
    pytest.importorskip("pdoc")
    directory = tmp_path_factory.mktemp("api")
    ignored = "ignore:jax.:DeprecationWarning"
    command = [sys.executable, "-W", "error", "-W", ignored, "-m", "pdoc", "-d", "google"]
    command += ["--no-show-source", "-t", TEMPLATES, "-o", directory]
    subprocess.run(
        [*command, "sere_jax", "sere_jax.bijector"],
        cwd=TEMPLATES.parents[1],
        env={**os.environ, "PDOC_DISPLAY_ENV_VARS": "1"},
        check=True,
    )

    def read(module):
        page = (directory / f"{module.replace('.', '/')}.html").read_text()
        text = html.unescape(re.sub(r"<[^>]+>", "", page))
        return words(text), set(re.findall(r'id="([\w.]+)"', page))

    return read


def words(text):
    """The text without markup, quotation marks of all kinds and differences of white space."""
    return " ".join(re.sub(r"[`*_'\"‘’“”\\]", "", text).split())


@pytest.mark.parametrize("name", sere_jax.__all__)
def test_everything_public_is_there_with_its_docstring(pages, name):
    text, entries = pages("sere_jax")
    docstring = getattr(sere_jax, name).__doc__

    assert name in entries
    summary = docstring.partition("\n\n")[0]
    assert len(summary) > 20 and words(summary) in text


def test_what_other_libraries_document_is_not(pages):
    text, entries = pages("sere_jax.bijector")
    assert {"RankOneAffine", "RankOneAffine.forward", "BIJECTORS"} <= entries
    assert "Array" not in entries
    assert not any(name.endswith((".parent", ".scope")) for name in entries)
