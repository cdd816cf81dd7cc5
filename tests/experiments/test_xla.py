"""The flags that commands add to XLA's."""

import pytest

from experiments import xla
from sere_jax import compilation


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, compilation.FLAG),
        ("--a=1", f"--a=1 {compilation.FLAG}"),
        (f"{compilation.FLAG}dot --a=1", f"{compilation.FLAG}dot --a=1"),
    ],
)
def test_the_flag_is_added_to_those_there_are_but_never_overrides(monkeypatch, before, after):
    monkeypatch.setattr(compilation, "is_faulty", lambda: True)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    xla.avoid_faulty_fusions()
    assert xla.os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize(
    ("version", "faulty"),
    [("0.10.1", False), ("0.10.2", True), ("0.11.0", True), ("0.12.0", False), ("0.9.2", False)],
)
def test_versions_that_do_not_know_the_flag_do_not_get_it(monkeypatch, version, faulty):
    monkeypatch.setattr(compilation.jaxlib, "__version__", version)
    monkeypatch.setenv("XLA_FLAGS", "")
    xla.avoid_faulty_fusions()
    assert (compilation.FLAG in xla.os.environ["XLA_FLAGS"]) == faulty
