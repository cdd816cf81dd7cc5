"""Command line of all experiments.

    python -m experiments.main --config=configs/digits.py
    python -m experiments.main --config=configs/mnist_mlp.py:dlgm --config.training.num_epochs=60

A relaunch with the same workdir resumes by itself. On several hosts, one process a host:

    python -m experiments.main --config=configs/digits.py --distributed
"""

import contextlib
import pathlib
import shlex
import sys
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.command_line.flags import CommandLineError, check_processes, configurations, parse
from experiments.command_line.workdir_name import default_workdir
from experiments.system import console, host_memory
from experiments.system.errors import (
    DIVERGED,
    INTERRUPTED,
    USER_ERROR,
    TrainingDivergedError,
    UserError,
    exit_with,
    explain_system_error,
    silence_repeated_errors,
)
from experiments.system.paths import local_path
from sere_jax.config import ConfigError
from sere_jax.rules import STORED_AS

_MODES = ("train", "evaluate", "sample", "report", "export")

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment: configs/NAME.py, configs/NAME.py:VARIANT or a file of your own. Any field can "
    "be overridden: --config.training.num_epochs=60; docs/options.md has all fields. In modes "
    "other than train it can be left out: --workdir then names the run.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; by default runs/NAME or runs/NAME_VARIANT, and the fields that are set.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    _MODES,
    "train: train (or resume), then evaluate; evaluate: the test set anew; sample: draw images; "
    "report: write report.html anew; export: write the weights to one file, and a model card.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float16", STORED_AS, "Type of the exported weights; --mode=export says the loss."
)
_LICENCE = flags.DEFINE_string(
    "licence", "", "Licence of the exported weights, which the model card names: apache-2.0, say."
)
_EXTEND = flags.DEFINE_boolean(
    "extend",
    False,
    "Train the run in the workdir for longer: up to the config.training.num_epochs that is given.",
)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    False,
    "This is one process of several; TPU pods, Slurm and Open MPI tell JAX the rest.",
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0, with a free port. This flag and the next two are for several "
    "processes anywhere else, all three together; they imply --distributed.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, at least 1.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0; process 0 writes the workdir."
)


def main(_: list[str]) -> None:
    """Runs one mode; JAX, and what it alone imports, comes after the flags have been checked."""
    import jax

    jax.config.update("jax_enable_x64", False)  # whatever the environment says

    logging.set_verbosity(logging.WARNING)
    silence_repeated_errors()
    workdir = _workdir()
    command = shlex.join(["python", "-m", "experiments.main", *sys.argv[1:]])
    try:
        if _is_one_of_several():
            from experiments.distributed import processes

            processes.initialize(*_process_flags())
        from experiments.command_line import modes

        arguments = (_CONFIG.value, workdir, command)
        if _MODE.value == "train":
            modes.train(*arguments, config_argument=_config_argument(), extend=_EXTEND.value)
        elif _MODE.value == "export":
            modes.export(*arguments, dtype=_DTYPE.value, licence=_LICENCE.value)
        else:
            getattr(modes, _MODE.value)(*arguments)
    except (UserError, ConfigError) as error:
        _fail(str(error), USER_ERROR)
    except TrainingDivergedError as error:
        _fail(str(error), DIVERGED)
    except OSError as error:
        message = explain_system_error(error, workdir)
        if _is_one_of_several():
            exit_with(message, USER_ERROR)
        _fail(message, USER_ERROR)
    except KeyboardInterrupt:  # not while training, which saves first
        # An orderly exit would wait for other processes, and for threads that still compile.
        exit_with("interrupted; what is finished is kept: the same command goes on", INTERRUPTED)
    except Exception as error:
        if not _is_one_of_several():
            raise
        processes.exit_at_once(error)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it is one line on stderr."""
    if any(argument in ("-h", "-help", "--help", "--helpshort") for argument in argv[1:]):
        _, _, own_flags = flags.FLAGS.main_module_help().partition(":\n")  # after this file's path
        print(f"{__doc__}\nconfigurations:\n{configurations()}\nflags:\n{own_flags}")
        sys.exit(0)
    if any(argument in ("-helpfull", "--helpfull") for argument in argv[1:]):
        print(flags.FLAGS.get_help())
        sys.exit(0)
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is an error below
    try:
        remaining = parse(argv)
        if _is_one_of_several():
            check_processes(_MODE.value, *_process_flags())
    except CommandLineError as error:
        _fail(str(error), USER_ERROR)
    if remaining[1:]:
        _fail(f"unexpected arguments {' '.join(remaining[1:])}; see --help", USER_ERROR)
    if _CONFIG.value is None:
        way_out = "try --config=configs/digits.py, or --help"
        if _MODE.value != "train":
            way_out = "give it, or the --workdir of a run"
        _fail(f"--config is missing; {way_out}", USER_ERROR)
    if _EXTEND.value and _MODE.value != "train":
        _fail(f"--extend trains, and --mode={_MODE.value} does not; leave out one", USER_ERROR)
    for name in ("dtype", "licence"):
        flag = flags.FLAGS[name]
        if flag.present and _MODE.value != "export":
            _fail(
                f"--{name}={flag.value} means nothing to --mode={_MODE.value}; leave it out",
                USER_ERROR,
            )
    if _WORKDIR.value is not None and not _WORKDIR.value.strip():
        _fail(
            f"--workdir={_WORKDIR.value!r} has no name; name a folder, or leave it out for "
            f"{_default_workdir()}",
            USER_ERROR,
        )
    try:
        _workdir()
    except UserError as error:
        _fail(str(error), USER_ERROR)
    return argv


def _workdir() -> pathlib.Path:
    if _WORKDIR.value is None:
        return _default_workdir()
    return local_path(_WORKDIR.value, "--workdir")


def _default_workdir() -> pathlib.Path:
    overridden = config_flags.get_override_values(flags.FLAGS["config"])
    return default_workdir(_config_argument(), overridden, sys.argv)


def _process_flags() -> tuple[str | None, int | None, int | None]:
    return _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value


def _is_one_of_several() -> bool:
    return _DISTRIBUTED.value or any(value is not None for value in _process_flags())


def _config_argument() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])


def _fail(message: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr may be a file on the same full disk
        print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    host_memory.keep_freed_memory()
    console.make_robust()
    app.run(main, flags_parser=parse_flags)
