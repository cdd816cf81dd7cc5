"""Runs the command many times without importing JAX each time: forks one child a command.

Reads from stdin one JSON line a command: `arguments`, `cwd`, `stdout` and `stderr`
(files). Answers with one line: the exit code. The parent imports, but never parses a
flag nor touches a device, and has one thread, so that each child is as fresh as a new process. (For
that, OPENBLAS_NUM_THREADS must be 1.)
"""

import importlib
import json
import os
import signal
import sys
import threading
import traceback

from absl import app

SECONDS = 60  # against hanging, not a limit that is tested
HEAVY = (
    "array_record.python.array_record_data_source",
    "distrax",
    "experiments.command_line.modes",
    "sklearn.datasets",
    "tensorflow_datasets",
)


def main() -> None:
    """Serves until stdin is closed."""
    for module in HEAVY:
        importlib.import_module(module)
    from experiments import main as command

    assert len(os.listdir("/proc/self/task")) == threading.active_count() == 1
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(command, **request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(command, arguments, cwd, stdout, stderr) -> None:
    """Does in the child what `python -m experiments.main` does, and ends the process."""
    signal.alarm(SECONDS)
    for descriptor, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    os.chdir(cwd)
    sys.argv = [command.__file__, *arguments]
    code = 1
    try:
        app.run(command.main, flags_parser=command.parse_flags)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
