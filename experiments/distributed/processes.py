"""A run of several processes, one a host: how they meet, agree, fail and stop together.

With one process every function here is a plain call. With several, each has to be called by all
of them in the same order, since they wait for each other.
"""

import functools
import json
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import jax
import numpy as np

from experiments.distributed import devices
from experiments.system.errors import LOST_PROCESS, USER_ERROR, UserError, exit_with
from sere_jax.config import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

# All processes have to be there within this time; the hosts of a pod may start minutes apart.
START_TIMEOUT_SECONDS = 300
# A process that has not been heard of for so long is lost; where its connections break, as they
# do if it is killed, the others know at once.
HEARTBEAT_TIMEOUT_SECONDS = 30
# How long a process that is through with its work waits for the others to be.
SHUTDOWN_TIMEOUT_SECONDS = 60


def initialize(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: float = START_TIMEOUT_SECONDS,
) -> None:
    """Joins the other processes of the run; to be called before anything uses a device.

    If they do not all appear within `timeout` seconds the process ends with one line on stderr
    and exit code 2.

    Args:
        coordinator_address: HOST:PORT of process 0; None where JAX detects it.
        num_processes: of the run; None where JAX detects it.
        process_id: 0 .. num_processes - 1; None where JAX detects it.
        timeout: in seconds.

    Raises:
        UserError: there is nothing to detect, or process 0 cannot use its port; in all processes:
            their numbers of devices differ.
    """
    if coordinator_address is not None and process_id == 0:
        _check_port_is_free(coordinator_address)
    # Else JAX installs a handler of its own for SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX would abort with a stack trace, and not react to Ctrl-C while it waits.
    watchdog = threading.Timer(timeout, _nobody_there, (coordinator_address, timeout))
    watchdog.daemon = True
    watchdog.start()
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=int(timeout) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run cannot be connected ({_first_line(error)}); give "
            "--coordinator_address=HOST:PORT, --num_processes and --process_id, all three "
            "(--distributed alone is for TPU pods, Slurm and Open MPI)"
        ) from error
    finally:
        signal.signal(signal.SIGINT, previous)
        watchdog.cancel()
    counts = [len(jax.local_devices(process_index=i)) for i in range(devices.num_processes())]
    if len(set(counts)) > 1:
        raise UserError(f"the processes have {counts} devices; all must have the same number")


def is_first_process() -> bool:
    """Whether this process is the one that reads and writes the workdir."""
    return jax.process_index() == 0


def on_every_process(function: Callable[[], T]) -> T:
    """Calls `function`; a failure in one process is a failure of all.

    Raises:
        UserError, ConfigError: of `function`; with several processes a UserError with the message
            of the first one in which it failed.
    """
    total = devices.num_processes()
    if total == 1:
        return function()
    message = None
    try:
        result = function()
    except (UserError, ConfigError) as error:
        message = str(error)
    first_failed = total - devices.maximum(0 if message is None else total - jax.process_index())
    if first_failed < total:
        message = _json_of_process(first_failed, message)
        raise UserError(message + (f" (process {first_failed})" if first_failed else ""))
    return result


def on_first_process(function: Callable[[], T]) -> T | None:
    """Calls `function` in process 0 while the others wait; they return None.

    Raises:
        UserError: in all processes, if `function` raises one (or a ConfigError).
    """
    return on_every_process(function if is_first_process() else lambda: None)


def done_by_first_process(function: Callable[P, T]) -> Callable[P, T]:
    """All processes call `function`; the first one does it while the others wait.

    Its answer is a JSON value, and that of all of them. So is a UserError that it raises.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return json_of_first_process(on_first_process(lambda: function(*args, **kwargs)))

    return call


def skipped_by_others(function: Callable[P, T]) -> Callable[P, T | None]:
    """The first process calls `function`; in the others it does nothing. Nobody waits."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        return function(*args, **kwargs) if is_first_process() else None

    return call


@skipped_by_others
def tell(*lines: str) -> None:
    """Prints lines on stderr."""
    for line in lines:
        print(line, file=sys.stderr)


def json_of_first_process(value: Any) -> Any:
    """The JSON value of process 0, in all processes."""
    return value if devices.num_processes() == 1 else _json_of_process(0, value)


def arrays_of_first_process(tree: Any) -> Any:
    """The arrays of process 0, bit by bit, as host arrays in all processes.

    Args:
        tree: arrays, whose shapes and types are the same in all processes.
    """
    if devices.num_processes() == 1:
        return tree
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    received = devices.from_process(0, [_to_words(leaf.tobytes()) for leaf in leaves])
    return jax.tree.unflatten(
        jax.tree.structure(tree),
        [
            np.frombuffer(_to_bytes(words, leaf.nbytes), leaf.dtype).reshape(leaf.shape)
            for words, leaf in zip(received, leaves, strict=True)
        ],
    )


def restored_by_first_process(
    template: Any, restore: Callable[[], tuple[Any, Any] | None]
) -> tuple[Any, Any] | None:
    """What `restore` returns in process 0, in all processes.

    Args:
        template: arrays of the same structure, shapes and types as those that are restored.
        restore: () -> arrays and a JSON value other than None, or None.
    """
    arrays, record = on_first_process(restore) or (template, None)
    record = json_of_first_process(record)
    return None if record is None else (arrays_of_first_process(arrays), record)


def check_same(what: str, compute: Callable[[], Any], describe: Callable[[Any, Any], str]) -> None:
    """Checks that a JSON value is the same in all processes.

    Args:
        what: it is, for the message.
        compute: the value of this process; not called if there is no other.
        describe: (value here, value of process 0) -> in what they differ, "" if it does not matter.

    Raises:
        UserError: in all processes, if one has a different value.
    """
    if devices.num_processes() == 1:
        return
    value = compute()
    expected = json_of_first_process(value)

    def check():
        if value != expected and (difference := describe(value, expected)):
            raise UserError(
                f"{what} differ from those of process 0: {difference}; start all processes with "
                "the same command, code and data"
            )

    on_every_process(check)


def any_signal(signal_number: int | None) -> int | None:
    """The signal that one of the processes has received, in all of them; None without one."""
    if devices.num_processes() == 1:
        return signal_number
    return devices.maximum(signal_number or 0) or None


def any_process(value: bool) -> bool:
    """Whether it is true in one of the processes, in all of them."""
    return value if devices.num_processes() == 1 else bool(devices.maximum(int(value)))


def exit_at_once(error: BaseException) -> NoReturn:
    """Ends this process of several after an error that the others do not know of.

    An orderly exit would wait for them, and they may wait for this one. They notice that it is
    gone and end as well.
    """
    if re.search("gloo|nccl|unavailable|coordination service", str(error), re.IGNORECASE):
        exit_with(
            f"another process of the run was lost ({_first_line(error)}); start all processes "
            "anew: the same command resumes from the last checkpoint",
            LOST_PROCESS,
        )
    traceback.print_exception(error)
    exit_with(f"process {jax.process_index()} failed; the others end as well", 1)


def _check_port_is_free(coordinator_address):
    port = coordinator_address.rpartition(":")[2]
    try:
        socket.create_server(("", int(port))).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise UserError(
            f"--coordinator_address={coordinator_address}: port {port} cannot be used here "
            f"({reason}); process 0 must run on that host, on a free port"
        ) from error


def _nobody_there(coordinator_address, timeout):
    address = coordinator_address or "the address that was detected"
    exit_with(
        f"not all processes of the run were connected within {timeout:g} seconds; start all of "
        f"them, process 0 at {address}, where the others must be able to reach it",
        USER_ERROR,
    )


def _first_line(error):
    return (str(error).strip() or repr(error)).splitlines()[0]


def _json_of_process(index, value):
    data = json.dumps(value).encode() if jax.process_index() == index else b""
    length = int(devices.from_process(index, np.int32(len(data))))
    # Few lengths, since each is compiled.
    padded = max(1 << (length - 1).bit_length(), 4096)
    words = devices.from_process(index, _to_words(data.ljust(padded, b"\0")))
    return json.loads(_to_bytes(words, length))


def _to_words(data: bytes) -> np.ndarray:
    return np.frombuffer(data + b"\0" * (-len(data) % 4), np.uint32)


def _to_bytes(words, length: int) -> bytes:
    return np.asarray(words).tobytes()[:length]
