"""Prints docs/options.md, every field of a configuration.

python -m experiments.settings > docs/options.md
"""

import importlib

from experiments.settings.fields import SECTIONS
from sere_jax.rules import Rule, Setting, settings_of

HEAD = """# Options

Every field of a configuration and its default in `configs/base.py`; other configurations change
some. Set them in a file like those of `configs/`, or on the command line. This page is made from
their declarations, by `python -m experiments.settings > docs/options.md`.

    python -m experiments.main --config=configs/digits.py --workdir=runs/seed_1 --config.seed=1
"""


def page() -> str:
    """The page, in Markdown."""
    return HEAD + "".join(_table(name, section) for name, section in SECTIONS.items())


def _table(name: str, section: type) -> str:
    about = (section.__doc__ or "").partition("\n")[0]
    lines = [
        f"\n## config{'.' if name else ''}{name}\n\n{about}\n",
        "| field | default | what it may be | meaning |",
        "|---|---|---|---|",
    ]
    for field, declared in settings_of(section).items():
        cells = (f"`{field}`", f"`{declared.default!r}`", _allowed(declared.rule), _use(declared))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _allowed(rule: Rule) -> str:
    if not rule.table:
        return rule.allowed
    module, _, table = rule.table.rpartition(".")
    names = getattr(importlib.import_module(module), table)
    return f"one of {', '.join(names)}, or a name that you add to `{rule.table}`"


def _use(declared: Setting) -> str:
    systems = " or ".join(f"`{system}`" for system in declared.systems)
    needs = [
        " or ".join(f"`{field}={value!r}`" for value in values)
        for field, values in declared.needs.items()
    ]
    needs = [systems, *needs] if systems else needs
    return declared.meaning + (f" Only with {' and '.join(needs)}." if needs else "")


if __name__ == "__main__":
    print(page(), end="")
