"""The one place that knows how work is spread over devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.errors import UserError

DEVICES = "devices"


def parallelize(
    function: Callable,
    *,
    per_device: Sequence[int] = (),
    per_device_outputs: bool = False,
    donate: Sequence[int] = (),
    num_arguments: int,
) -> Callable:
    """Compiles `function` for all devices of all hosts.

    Inside, `jax.lax.axis_index(DEVICES)` is the device's number and `jax.lax.pmean(.., DEVICES)`
    averages over devices. Arguments are replicated: each device sees the whole.

    Args:
        function: a pure function of `num_arguments` positional arguments.
        per_device: arguments with a leading axis of local devices, split over them.
        per_device_outputs: whether the outputs gain a leading axis of local devices; otherwise they
            are the same on all devices and come back once.
        donate: arguments whose memory the outputs may reuse.
        num_arguments: how many arguments `function` takes.
    """
    in_axes = [0 if i in per_device else None for i in range(num_arguments)]

    def with_marker(_, *arguments):
        return function(*arguments)

    # pmap wants at least one argument that is split over devices, even if it is not used.
    mapped = jax.pmap(
        with_marker,
        axis_name=DEVICES,
        in_axes=(0, *in_axes),
        out_axes=0 if per_device_outputs else None,
        donate_argnums=tuple(i + 1 for i in donate),
    )
    marker = np.zeros(jax.local_device_count(), np.int8)
    return functools.partial(mapped, marker)


def num_devices() -> int:
    """Devices of all hosts.

    Raises:
        UserError: JAX finds none, say because JAX_PLATFORMS names a kind that is not there.
    """
    try:
        return jax.device_count()
    except RuntimeError as error:
        raise UserError(
            f"JAX finds no devices ({error}); set JAX_PLATFORMS=cpu, or leave it unset"
        ) from error


def replicate(tree: Any) -> Any:
    """Copies host arrays to every local device once, so that later calls move nothing."""
    return parallelize(lambda t: t, num_arguments=1)(tree)
