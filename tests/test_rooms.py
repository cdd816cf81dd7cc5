"""The layout holds: rooms import in one direction, files and functions stay short."""

import ast
import graphlib
import pathlib

import pytest
from command_line import ROOT

# From the bottom to the top; a room imports itself and those before it.
ROOMS = (
    "sere_jax",
    "experiments.system",
    "experiments.settings",
    "experiments.optimization",
    "experiments.distributed",
    "experiments.data",
    "experiments.run_folder",
    "experiments.training",
    "experiments.reporting",
    "experiments.command_line",
    "experiments",
)
MAX_LINES_OF_A_FILE, MAX_LINES_OF_A_FUNCTION = 350, 60
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in files("sere_jax", "experiments", "configs")}


def imported(path):
    """The modules of the project that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)


def room(name):
    """The innermost room of a module."""
    return max((r for r in ROOMS if f"{name}.".startswith(f"{r}.")), key=len, default=name)


def nesting(function):
    inner = [node for node in ast.walk(function) if isinstance(node, FUNCTIONS)][1:]
    return 1 + max(map(nesting, inner), default=0)


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("configs")])
def test_nothing_is_imported_upwards(name):
    own = room(name)
    for other in imported(MODULES[name]):
        if other.startswith("configs"):
            # Tables of kept runs and the first figure name configurations.
            assert own == "experiments", f"{name} imports {other}"
        else:
            assert ROOMS.index(room(other)) <= ROOMS.index(own), f"{name} imports {other}"


def test_configurations_import_settings_alone():
    for name in MODULES:
        if name.startswith("configs"):
            rooms = {room(other) for other in imported(MODULES[name])}
            assert {r for r in rooms if not r.startswith("configs")} <= {
                "experiments.settings",
                "sere_jax",
            }, name


def test_there_are_no_circles():
    graph = {name: set(imported(path)) - {name} for name, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize(
    "path",
    files("sere_jax", "experiments", "configs", "examples"),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_files_and_functions_are_short(path: pathlib.Path):
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"
            assert nesting(node) <= 2, f"{node.name} nests functions deeper than one"
