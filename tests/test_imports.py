"""What is imported when: JAX only where something needs it, and all public names none the less."""

import ast
import importlib
import os
import subprocess
import sys

import pytest
from command_line import ROOT

import sere_jax
from sere_jax import xla_flag

HELP = """
from experiments import main
try:
    main.parse_flags(["main", *{arguments}])
except SystemExit as end:
    print("code", end.code)
"""


def modules_after(program):
    """What a new process has imported after `program`, and what it printed."""
    finished = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        text=True,
    )
    printed, _, modules = finished.stdout.rstrip("\n").rpartition("\n")
    return set(modules.split()), printed + finished.stderr


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import experiments.settings.fields, experiments.settings.checks", ""),
        ("import sere_jax.rules, sere_jax; sere_jax.ModelConfig, sere_jax.config", ""),
        (HELP.format(arguments=["--help"]), "configs/digits.py"),
        (HELP.format(arguments=["--mod=train"]), "did you mean '--mode'"),
        (
            HELP.format(arguments=["--config=configs/digits.py", "--config.seeed=1"]),
            "did you mean 'seed'",
        ),
    ],
    ids=["settings", "configuration of a model", "help", "wrong flag", "wrong field"],
)
def test_what_computes_nothing_imports_no_jax(program, message):
    modules, printed = modules_after(program)
    assert message in printed
    assert "sere_jax.rules" in modules
    assert not {"jax", "jaxlib", "flax", "distrax"} & modules


@pytest.mark.skipif(not xla_flag.is_known(xla_flag.OPTION), reason="this jaxlib needs no flag")
def test_the_flag_is_set_before_jax_is_imported():
    modules, printed = modules_after('import os, sere_jax; print(os.environ["XLA_FLAGS"])')
    assert xla_flag.OPTION in printed and "jax" not in modules


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse((ROOT / "sere_jax" / "__init__.py").read_text())
    ifs = [node for node in tree.body if isinstance(node, ast.If)]
    (shown,) = (node for node in ifs if ast.unparse(node.test) == "TYPE_CHECKING")
    homes = {alias.name: node.module for node in shown.body for alias in node.names}
    assert sorted(homes) == sere_jax.__all__
    everything = {}
    exec("from sere_jax import *", everything)
    for name, module in homes.items():
        expected = getattr(importlib.import_module(module), name)
        assert getattr(sere_jax, name) is everything[name] is expected
        assert expected.__module__ == module
    assert set(sere_jax.__all__) <= set(dir(sere_jax))


def test_modules_are_attributes_and_other_names_are_not():
    modules, _ = modules_after("import sere_jax; assert sere_jax.bijector.BIJECTORS")
    assert "jax" in modules
    with pytest.raises(AttributeError, match="'sere_jax' has no attribute 'likelyhood'"):
        _ = sere_jax.likelyhood
