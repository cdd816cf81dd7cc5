"""The commands of the documentation are ones that the command line takes."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from configs import digits

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ["README.md", "WORKSPACE.md", "docs/*.md", "configs/*.py", "experiments/**/*.py"]
COMMAND = re.compile(r"python -m experiments\.main (--[^\n`&]*)")
LOOP = re.compile(r"for (\w+) in (\S+) [^;\n]*; do (.*); done")
PLACEHOLDER = re.compile(r"\[|\b(NAME|RUN|ROW|DIR|VARIANT|CASE)\b")

# Parses each command in a child of its own, as flags are global.
PARSE_ALL = """
import json, os, sys
from experiments import main
for command in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        sys.argv = ["main", *command]
        main.parse_flags(sys.argv)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def documented_commands():
    """(page, arguments) of every command without a placeholder."""
    for page in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        once = LOOP.sub(lambda loop: loop[3].replace(f"${loop[1]}", loop[2]), page.read_text())
        for arguments in COMMAND.findall(once):
            if not PLACEHOLDER.search(arguments):
                yield page.name, arguments.strip().strip('"')


@pytest.fixture(scope="module")
def exit_codes(tmp_path_factory):
    run = tmp_path_factory.mktemp("digits")
    (run / "config.json").write_text(digits.get_config().to_json_best_effort())
    commands = [
        shlex.split(arguments.replace("--workdir=runs/digits ", f"--workdir={run} "))
        for _, arguments in documented_commands()
    ]
    child = subprocess.run(
        [sys.executable, "-c", PARSE_ALL],
        cwd=ROOT,
        input=json.dumps([*commands, ["--config=configs/digits.py:nope"]]),
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line) for line in child.stdout.split()], child.stderr


def test_documented_commands_are_understood(exit_codes):
    codes, errors = exit_codes
    commands = list(documented_commands())
    assert len(commands) > 20
    assert dict(zip(commands, codes, strict=False)) == dict.fromkeys(commands, 0), errors


def test_a_wrong_command_would_be_noticed(exit_codes):
    assert exit_codes[0][-1] == 2


def test_links_and_pictures_of_the_documentation_are_there():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
