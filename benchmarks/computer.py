"""The computer that a benchmark runs on, as its figures name it."""

from typing import Any

from experiments.system import computer

VERSIONS = ("jax", "jaxlib", "torch")
# Of what the kernel lists: vectors of 256 bits, of 512, and what multiplies bfloat16 in hardware.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, Any]:
    """What `experiments.system.computer.describe` says, and the CPU's instruction sets."""
    flags = computer.cpu_fields().get("flags", "")
    return computer.describe(VERSIONS) | {"instruction_sets": _instruction_sets(flags)}


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
    fields = computer.fields_of_first(text)
    return computer.cpu_name(fields), _instruction_sets(fields.get("flags", ""))


def _instruction_sets(flags: str) -> list[str]:
    return [name for name in INSTRUCTION_SETS if name in flags.split()]
