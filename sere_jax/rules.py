"""How a setting is declared: its default, its meaning and the rule of its values, in one place."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

INFINITY = 2.0**128  # of float32
SMALLEST = 2.0**-126  # above 0
NEAREST_TO_ONE = 1 - 2.0**-24  # below 1
BFLOAT16 = "bfloat16"
PRECISIONS = ("float32", BFLOAT16)  # of the networks' products in training
STORED_AS = ("float32", "float16", BFLOAT16)  # types of weights in a file


class Rule(NamedTuple):
    """What the values of a setting may be."""

    allowed: str  # in words that follow "must be"
    allows: Callable[[Any], bool]
    choices: tuple[str, ...] = ()  # all values, where they are a few names
    table: str = ""  # module and name of the dictionary whose keys they are


class Setting(NamedTuple):
    """One declared setting."""

    default: Any
    meaning: str
    rule: Rule
    systems: tuple[str, ...] = ()  # those that read it; (): all
    needs: Mapping[str, tuple] = {}  # other settings and their values; else this one is unused


def setting(
    default: Any,
    meaning: str,
    rule: Rule,
    *,
    is_required: bool = False,
    systems: tuple[str, ...] = (),
    needs: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass field that holds the declaration of a setting.

    Args:
        default: of an experiment's configuration.
        meaning: one or two sentences.
        rule: what values may be.
        is_required: whether the dataclass itself has no default.
        systems: those that read it; (): all.
        needs: other settings, and the value, or a tuple of values, without which this one is
            unused.
    """
    several = {
        field: values if isinstance(values, tuple) else (values,)
        for field, values in (needs or {}).items()
    }
    declared = Setting(default, meaning, rule, systems, several)
    metadata = {"setting": declared}
    if is_required:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(section: Any) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(section)}


def refusal(path: str, value: Any, rule: Rule) -> str | None:
    """Why `config.path` may not be `value`, in one line; None: it may."""
    if rule.allows(value):
        return None
    way_out = nearest(value, rule.choices) if isinstance(value, str) else ""
    return f"config.{path}={value!r} must be {rule.allowed}{way_out}"


def unused(config: Any, checked: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Settings of `config` that are not at their default although nothing reads them: why not.

    Args:
        config: a record of declared settings, one of them `system`.
        checked: of each field that names an entry of a table, the names that leave settings unread;
            other names, which extensions enter, may read all.
    """
    for name, declared in settings_of(config).items():
        value = getattr(config, name)
        needs = dict(declared.needs)
        if declared.systems:
            needs = {"system": declared.systems} | needs
        for field, needed in needs.items():
            chosen = getattr(config, field)
            is_checked = field not in checked or chosen in checked[field]
            if value != declared.default and is_checked and chosen not in needed:
                yield (
                    f"{name}={value!r} means nothing to {field}={chosen!r}; "
                    f"leave it at {declared.default!r}, or choose {field}={needed[0]!r}"
                )


def nearest(name: str, known: Iterable[str], shown: Callable[[str], Any] = str) -> str:
    """'; did you mean ...?' or nothing.

    Args:
        name: as it was written.
        known: what it may be.
        shown: one of them to what the message says.
    """
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {shown(matches[0])!r}?" if matches else ""


def python_value(value: Any) -> Any:
    """Numbers of NumPy and JAX as Python's; arrays, lists and tuples of them as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(python_value, value)) if isinstance(value, list | tuple) else value


def integer(low: int, bits: int = 31) -> Rule:
    """Integers from `low`. Steps, samples and images are counted by 32-bit integers."""
    return between(low, 2**bits - 1, f"2^{bits} - 1")


def between(low: int, high: int, name_of_high: str = "") -> Rule:
    """Integers from `low` to `high`."""
    allowed = f"an integer from {low} to {name_of_high or high}"
    return Rule(allowed, lambda v: _is_integer(v) and low <= v <= high)


def one_of(*choices: str) -> Rule:
    """One of a few names."""
    return Rule(f"one of {', '.join(choices)}", lambda v: v in choices, choices)


def name_in(table: str) -> Rule:
    """A key of a dictionary, which is looked up when the value is used: extensions add to it."""
    return Rule(f"a name in {table}", lambda v: isinstance(v, str), table=table)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, also in float32."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and abs(value) < INFINITY  # and not NaN


def _are_sizes(values: Any) -> bool:
    return all(_is_integer(value) and value >= 1 for value in values)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


POSITIVE_INT = integer(1)
WIDTH = between(1, 2**20)
NATURAL = integer(0)
POSITIVE = Rule(
    "a number above 0, of at least 2^-126 and below 2^128 (float32)",
    lambda v: is_number(v) and v >= SMALLEST,
)
NOT_NEGATIVE = Rule(
    "a number of at least 0, and if above 0 from 2^-126 to below 2^128 (float32)",
    lambda v: is_number(v) and (v == 0 or v >= SMALLEST),
)
BELOW_ONE = Rule(
    "a number from 0 to below 1, at most 1 - 2^-24 in float32",
    lambda v: is_number(v) and 0 <= v <= NEAREST_TO_ONE,
)
BOOLEAN = Rule("True or False", lambda v: isinstance(v, bool))
INSIDE_UNIT_INTERVAL = Rule(
    "a number between 0 and 1, at least 1e-6 from both",
    lambda v: is_number(v) and 1e-6 <= v <= 1 - 1e-6,
)
DATA_SHAPE = Rule(
    "(height, width, channels): 3 entries, integers of at least 1",
    lambda v: len(v) == 3 and _are_sizes(v),
)
LATENT_SHAPE = Rule(
    "integers of at least 1, such as (10,) or (8, 8, 2), or (0,) for no latents",
    lambda v: v == (0,) or len(v) > 0 and _are_sizes(v),
)
LATENT_SIZES = Rule("(), or integers of at least 1, one for each layer", _are_sizes)
