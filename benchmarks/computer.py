"""The computer that a benchmark runs on, as its figures name it."""

import datetime
import os
import pathlib
import platform
from importlib import metadata
from typing import Any

import jax

CPU_INFO = pathlib.Path("/proc/cpuinfo")  # Linux alone has it
VERSIONS = ("jax", "jaxlib", "torch")
# Of what the kernel lists: vectors of 256 bits, of 512, and what multiplies bfloat16 in hardware.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, Any]:
    """The CPU, its instruction sets, cores that this process may use, JAX's devices, versions."""
    model, instruction_sets = read_cpu_info(CPU_INFO.read_text() if CPU_INFO.exists() else "")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model,
        "cores": usable_cores(),
        "instruction_sets": instruction_sets,
        "devices": [device.device_kind for device in jax.devices()],
        "versions": {name: _version(name) for name in VERSIONS},
    }


def as_line(described: dict[str, Any]) -> str:
    """The same in one line."""
    devices = described["devices"]
    parts = (
        f"{described['cpu']}, {described['cores']} cores",
        " ".join(described["instruction_sets"]),
        f"JAX runs on {len(devices)} x {devices[0]}",
        ", ".join(f"{name} {version}" for name, version in described["versions"].items()),
        described["date"],
    )
    return "; ".join(part for part in parts if part)


def read_cpu_info(text: str) -> tuple[str, list[str]]:
    """The model's name and which of `INSTRUCTION_SETS` it has, of the text of /proc/cpuinfo."""
    fields = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, [name for name in INSTRUCTION_SETS if name in flags]


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
