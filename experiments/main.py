"""Command line of all experiments.

    python -m experiments.main --config=configs/digits.py
    python -m experiments.main --config=configs/mnist_mlp.py:dlgm --config.training.num_epochs=60

A relaunch with the same workdir resumes by itself.
"""

import contextlib
import errno
import logging as python_logging
import pathlib
import shlex
import sys
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

_MODES = ("train", "evaluate", "sample", "report")

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment: configs/NAME.py or configs/NAME.py:VARIANT. Any field can be overridden: "
    "--config.training.num_epochs=60.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/NAME or runs/NAME_VARIANT by default."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    _MODES,
    "train: train (or resume), then evaluate; evaluate: the test set anew; sample: draw images; "
    "report: write report.html anew.",
)

USER_ERROR = 2
DIVERGED = 3


def default_workdir(config_argument: str) -> pathlib.Path:
    """runs/NAME for configs/NAME.py, runs/NAME_VARIANT for configs/NAME.py:VARIANT."""
    path, _, variant = config_argument.partition(":")
    name = pathlib.Path(path).stem
    return pathlib.Path("runs") / (f"{name}_{variant}" if variant else name)


def main(_: list[str]) -> None:
    """Runs one mode; the heavy imports come after the flags have been checked."""
    from experiments import host_memory

    host_memory.keep_freed_memory()

    from experiments import run
    from experiments.errors import UserError
    from sere_jax.config import ConfigError

    logging.set_verbosity(logging.WARNING)
    _silence_repeated_errors()
    workdir = pathlib.Path(_WORKDIR.value or default_workdir(_config_argument()))
    command = shlex.join(["python", "-m", "experiments.main", *sys.argv[1:]])
    try:
        getattr(run, _MODE.value)(_CONFIG.value, workdir, command)
    except (UserError, ConfigError) as error:
        _fail(str(error), USER_ERROR)
    except run.TrainingDivergedError as error:
        _fail(str(error), DIVERGED)
    except OSError as error:
        _fail(_system_error(error, workdir), USER_ERROR)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it is one line on stderr."""
    if any(argument in ("-h", "-help", "--help", "--helpshort") for argument in argv[1:]):
        print(f"{__doc__}\nflags:\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    try:
        remaining = flags.FLAGS(argv)
    except (flags.Error, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        _fail(_explanation(error), USER_ERROR)
    if remaining[1:]:
        _fail(f"unexpected arguments {' '.join(remaining[1:])}; see --help", USER_ERROR)
    if _CONFIG.value is None:
        _fail("--config is missing; try --config=configs/digits.py, or --help", USER_ERROR)
    try:
        hasattr(_CONFIG.value, "seed")  # where the file could not be loaded, any access raises
    except OSError as error:
        _fail(f"--config={_config_argument()}: {_explanation(error)}", USER_ERROR)
    return argv


def _config_argument() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])


def _explanation(error: Exception) -> str:
    message = str(error.args[0] if len(error.args) == 1 else error)
    # config_flags quotes the traceback of a configuration that raised; its last line says why.
    if "Traceback" in message:
        message = message.strip().splitlines()[-1].partition(": ")[2]
    return message


def _system_error(error: OSError, workdir: pathlib.Path) -> str:
    """What the system refused, where, and the way out."""
    reason = error.strerror or str(error) or type(error).__name__
    file = f" ({error.filename})" if error.filename else ""
    has_config = (workdir / "config.json").exists()  # orbax may just have created the folder anew
    if error.errno == errno.ENOENT and str(workdir) in file and not has_config:
        return f"--workdir={workdir} was deleted or moved during the run; put it back to resume"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"--workdir={workdir}: the disk is full, or a limit on it is reached: {reason}{file}; "
            "the last complete checkpoint is safe: make room, and the same command resumes"
        )
    return (
        f"--workdir={workdir}: {reason}{file}; the last complete checkpoint is safe: mend this, "
        "and the same command resumes"
    )


def _silence_repeated_errors() -> None:
    """Orbax raises the first error of a checkpoint and logs it and those that follow besides."""
    for name in ("absl", "asyncio"):
        python_logging.getLogger(name).setLevel(python_logging.CRITICAL)

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report


def _fail(message: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr may be a file on the same full disk
        print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
