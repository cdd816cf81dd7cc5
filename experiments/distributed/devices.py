"""The one place that knows how work is spread over devices."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.system.errors import UserError
from sere_jax import compilation

DEVICES = "devices"


def parallelize(
    function: Callable,
    *,
    donate: Sequence[int] = (),
    split: Sequence[int] = (),
    num_arguments: int,
) -> Callable:
    """Compiles `function` for all devices of all hosts.

    Inside, `jax.lax.axis_index(DEVICES)` is the device's number and `jax.lax.pmean(.., DEVICES)`
    averages over devices. Arguments are replicated: each device sees the whole of what its own
    process passes. The outputs must be the same on all devices and come back once, as arrays of
    this process.

    Every process has to make the same calls in the same order.

    Args:
        function: a pure function of `num_arguments` positional arguments.
        donate: arguments whose memory the outputs may reuse.
        split: arguments of which each device of this process sees its own part, the one of its
            number along the first axis.
        num_arguments: how many arguments `function` takes.

    Raises:
        UserError: programs that are compiled in this process compute wrong sums.
    """
    if compilation.is_faulty():
        raise UserError(
            f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r} lets this version of jaxlib compute "
            f"wrong sums; set XLA_FLAGS={compilation.FLAG}, or leave it unset"
        )

    def with_marker(_, *arguments):
        return function(*arguments)

    # pmap wants at least one argument that is split over devices, even if it is not used.
    mapped = jax.pmap(
        with_marker,
        axis_name=DEVICES,
        in_axes=(0, *(0 if i in split else None for i in range(num_arguments))),
        out_axes=None,
        donate_argnums=tuple(i + 1 for i in donate),
    )
    marker = np.zeros(jax.local_device_count(), np.int8)
    return functools.partial(mapped, marker)


def num_devices() -> int:
    """Devices of all hosts.

    Raises:
        UserError: JAX finds none, say because JAX_PLATFORMS names a kind that is not there.
    """
    return _ask(jax.device_count)


def num_processes() -> int:
    """Processes of the run, one a host.

    Raises:
        UserError: JAX finds no devices.
    """
    return _ask(jax.process_count)


def _ask(count):
    try:
        return count()
    except (RuntimeError, AssertionError) as error:  # the latter of JAX_PLATFORMS=cuda
        raise UserError(
            f"JAX finds no devices ({error}); set JAX_PLATFORMS=cpu, or leave it unset"
        ) from error


def memory_of_device() -> int | None:
    """Bytes that a device of this process has for arrays; None of CPUs, which do not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def part_of_process(values: np.ndarray) -> np.ndarray:
    """Of values [num_devices() * n], in the order of devices, those of this process's devices."""
    return values.reshape(num_processes(), -1)[jax.process_index()]


def mean_over_devices(tree: Any) -> Any:
    """Inside a parallelized function: the mean over all devices of each array.

    On a single device it is the tree itself, of which an all-reduce would make a copy.
    """
    return tree if num_devices() == 1 else jax.lax.pmean(tree, DEVICES)


def replicate(tree: Any) -> Any:
    """Copies host arrays to every local device once, so that later calls move nothing."""
    return parallelize(lambda t: t, num_arguments=1)(tree)


def from_process(index: int, tree: Any) -> Any:
    """The arrays of one process, on all devices of all processes.

    Args:
        index: the process whose arrays are taken.
        tree: integer arrays, whose shapes are the same in all processes.
    """
    return _from_device()(tree, index * jax.local_device_count())


def maximum(value: int) -> int:
    """The largest of the values (32 bits) that the processes pass."""
    return int(_maximum()(np.int32(value)))


@functools.cache
def _from_device():
    def take(tree, device):
        is_source = jax.lax.axis_index(DEVICES) == device
        return jax.lax.psum(jax.tree.map(lambda x: jnp.where(is_source, x, 0), tree), DEVICES)

    return parallelize(take, num_arguments=2)


@functools.cache
def _maximum():
    return parallelize(lambda value: jax.lax.pmax(value, DEVICES), num_arguments=1)
