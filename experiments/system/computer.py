"""The computer that something runs on, and the versions that it runs with, as records name them."""

import datetime
import os
import pathlib
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

CPU_INFO = pathlib.Path("/proc/cpuinfo")  # Linux alone has it
VERSIONS = ("jax", "jaxlib", "flax", "numpy")


def describe(packages: Sequence[str] = VERSIONS) -> dict[str, Any]:
    """Today's date (UTC), the CPU, cores that this process may use, JAX's devices, versions.

    `devices` has the kind of each device of all hosts; `versions` those of Python, of sere-jax and
    of `packages`.
    """
    import jax

    import sere_jax

    versions = {"python": platform.python_version(), "sere-jax": sere_jax.__version__}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_name(cpu_fields()),
        "cores": usable_cores(),
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions | {name: _version(name) for name in packages},
    }


def cpu_fields() -> dict[str, str]:
    """What the kernel says of the first CPU; empty where it says nothing."""
    return fields_of_first(CPU_INFO.read_text() if CPU_INFO.exists() else "")


def fields_of_first(cpu_info: str) -> dict[str, str]:
    """The fields of the first CPU in the text of /proc/cpuinfo."""
    fields = dict(line.split(":", 1) for line in reversed(cpu_info.splitlines()) if ":" in line)
    return {name.strip(): value.strip() for name, value in fields.items()}


def cpu_name(fields: dict[str, str]) -> str:
    """The model's name, or the platform's where the kernel gives none."""
    return fields.get("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
