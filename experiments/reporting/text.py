"""Values of records as text, with their units. Records may hold anything that JSON can."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

NOT_AVAILABLE = "not available"


def is_number(value: Any) -> bool:
    """Whether it can be formatted as one; True is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> str:
    """Strings as they are, lists by commas, all else as JSON."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value:
        return ", ".join(plain(item) for item in value)
    return json.dumps(value)


def rounded(value: Any) -> Any:
    """Numbers, and those in lists, to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return [rounded(item) for item in value] if isinstance(value, list) else value


def decimal(value: Any) -> str:
    """Two digits after the point."""
    return f"{value:,.2f}" if is_number(value) else plain(value)


def stderr(value: Any) -> str:
    """The same, but at least one digit that is not 0."""
    return f"{value:.1g}" if is_number(value) and 0 < value < 0.01 else decimal(value)


def bits(value: Any) -> str:
    """Four digits after the point, for bits per dimension."""
    return f"{value:.4f}" if is_number(value) else plain(value)


def nats(value: Any) -> str:
    """Two digits after the point, and the unit."""
    return f"{decimal(value)} nats"


def count(value: Any) -> str:
    """A whole number, with commas."""
    return f"{value:,.0f}" if is_number(value) else plain(value)


def command(value: Any) -> str:
    """Of one string, or of a list of arguments."""
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)


def duration(value: Any) -> str:
    """Of seconds, in the two largest units."""
    if not is_number(value):
        return plain(value)
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def extensions(continuations: Any) -> str:
    """From how many epochs to how many, and what the learning rate did, of a list of entries."""
    if not (isinstance(continuations, list) and all(isinstance(e, Mapping) for e in continuations)):
        return plain(continuations)
    does = {"hold": "held", "restart": "begun anew"}
    return "; ".join(
        f"from {decimal(entry.get('from_epochs'))} to {decimal(entry.get('to_epochs'))} epochs, "
        f"learning rate {does.get(str(entry.get('schedule')), 'unknown')}"
        for entry in continuations
    )


def early_stop(stop: Any) -> str:
    """At which step, and since which one the validation ELBO had not risen."""
    if not isinstance(stop, Mapping):
        return plain(stop)
    step, best = count(stop.get("step")), count(stop.get("best_step"))
    return f"at step {step}, without a rise of the validation ELBO since step {best}"


def hardware(computer: Mapping[str, Any]) -> str:
    """The devices and the processor of a record of `experiments.system.computer`."""
    devices: Sequence[Any] = computer.get("devices") or ()
    kinds = sorted({str(kind) for kind in devices} - {"cpu"})
    parts = [f"{list(map(str, devices)).count(kind)} × {kind}" for kind in kinds]
    cores = computer.get("cores")
    parts.append(f"{computer.get('cpu', 'CPU')}, {cores} core{'' if cores == 1 else 's'}")
    return "; ".join(parts)


def versions(computer: Mapping[str, Any]) -> str:
    """Names and versions, by commas."""
    known = computer.get("versions")
    entries = known.items() if isinstance(known, Mapping) else ()
    return ", ".join(f"{name} {version}" for name, version in entries)
