"""What is wrong with a command line, in one line: the value, what is allowed, the way out.

ml_collections and absl find the mistakes; here they are told in terms of the configuration.
"""

import ast
import contextlib
import json
import pathlib
import re
import shlex
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.run_folder import RESULTS_FILE, configuration
from experiments.run_folder.extension import import_extension
from experiments.system.errors import UserError
from experiments.system.paths import local_path
from sere_jax.rules import nearest

_TYPES: dict[type, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a tuple such as (8, 8, 1)",
}

_MODES_OF_SEVERAL_PROCESSES = ("train", "evaluate")
_RECORDED = pathlib.Path(configuration.__file__)


class CommandLineError(Exception):
    """A mistake in the command line or in the file that it names. The message is one line."""


def parse(argv: list[str]) -> list[str]:
    """Parses all flags and loads the configuration.

    Without --config, every mode but `train` takes the one that --workdir records.

    Args:
        argv: the program's name and its arguments.

    Returns:
        The name and the arguments that are no flags.

    Raises:
        CommandLineError: anything is wrong; a configuration file may raise whatever it likes.
    """
    argv = _with_configuration(argv)
    try:
        remaining = flags.FLAGS(argv)
        if flags.FLAGS["config"].present:
            _check_loaded(argv)
    except CommandLineError:
        raise
    except (Exception, SystemExit) as error:
        raise CommandLineError(_explanation(error, argv)) from error
    return remaining


def _with_configuration(argv):
    """With the home folder in place of `~`, which shells leave after `=`, or the recorded one."""
    config, mode, workdir = (_flag(name, argv) for name in ("config", "mode", "workdir"))
    try:
        if config:
            written = {f"{dashes}config={config}" for dashes in ("-", "--")}
            expanded = f"--config={local_path(config, '--config')}" if config[0] == "~" else None
            return [expanded or a if a in written else a for a in argv]
        if not (workdir or "").strip() or mode in (None, "train"):
            for path, value in overrides(argv):
                raise CommandLineError(
                    f"--config is missing, and --config.{path} sets a field of it; give both: "
                    f"{_config_of(workdir)} --config.{path}={value}"
                )
            return argv
        workdir = local_path(workdir, "--workdir")
        configuration.get_config(str(workdir))
        if mode != "report":  # which needs no model
            import_extension(workdir)
    except (ValueError, UserError) as error:
        raise CommandLineError(str(error)) from error
    return [argv[0], f"--config={_RECORDED}:{workdir}", *argv[1:]]


def _config_of(workdir):
    """The argument --config=... that the run in `workdir` was trained with, or an example."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, UserError):
        results = json.loads((local_path(workdir, "--workdir") / RESULTS_FILE).read_bytes())
        if config := _flag("config", shlex.split(results["command"])[2:]):
            return f"--config={config}"
    return "--config=configs/digits.py"


def _check_loaded(argv):
    argument, config = _flag("config", argv), flags.FLAGS["config"].value
    if type(config).__module__.startswith("ml_collections.config_flags"):
        load(argument)  # It holds the error of a file that could not be read, and raises it here.
    if not isinstance(config, ConfigDict):
        raise CommandLineError(
            f"--config={argument}: get_config() returned {type(config).__name__}; it must return "
            "an ml_collections.ConfigDict, as that of configs/base.py does"
        )
    for path, count in Counter(path for path, _ in overrides(argv)).items():
        if count > 1 and isinstance(_find_field(config, path), tuple):
            # ml_collections would concatenate the tuples.
            raise CommandLineError(f"--config.{path} is given {count} times; give it once")
    _check_length(dict(overrides(argv)), config)


def _check_length(overridden, config):
    """Refuses a number of epochs that a number of steps in the file overrules."""
    training = config.get("training")
    num_steps = training.get("num_steps") if isinstance(training, ConfigDict) else None
    given = overridden.get("training.num_epochs")
    if given is not None and num_steps and "training.num_steps" not in overridden:
        raise CommandLineError(
            f"--config.training.num_epochs={given} means nothing beside config.training.num_steps="
            f"{num_steps} of the file; add --config.training.num_steps=0, or set num_steps instead"
        )


def load(argument: str) -> Any:
    """What `get_config` of `--config=argument` returns, without overrides.

    Raises:
        CommandLineError: there is no such file, or it does not work.
    """
    name = argument.partition(":")[0]
    path = pathlib.Path(name)
    try:
        if not path.is_file():
            raise FileNotFoundError
    except OSError as error:
        known = {file.stem: str(file) for file in _files()}
        problem = "is a directory" if name and path.is_dir() else "there is no such file"
        choices = f"; choose one of {', '.join(known.values()) or 'yours'}"
        way_out = nearest(path.stem, known, known.get) or choices
        raise CommandLineError(f"--config={argument}: {problem}{way_out}") from error
    try:
        return flags.FLAGS["config"].parser.parse(argument)
    except (Exception, SystemExit) as error:
        # ml_collections replaces the ValueError of a file by another that quotes its traceback.
        cause = error.__context__ if isinstance(error.__context__, type(error)) else error
        if isinstance(cause, ValueError) and not isinstance(cause, (SyntaxError, UnicodeError)):
            raise CommandLineError(f"--config={argument}: {cause}") from error
        raise CommandLineError(
            f"--config={argument} raised {type(cause).__name__}{_line(cause, path)} ({cause}); "
            "fix it: a configuration is a file with get_config(variant) that returns a "
            "ConfigDict, like configs/base.py"
        ) from error


def configurations() -> str:
    """One line for each file in `configs/`: its path and the first line of its docstring."""
    lines = []
    for file in _files():
        docstring = ""
        with contextlib.suppress(SyntaxError, ValueError):  # --help is for those in trouble
            docstring = ast.get_docstring(ast.parse(file.read_bytes())) or ""
        lines.append(f"  {file}\n    {docstring.partition(chr(10))[0]}\n")
    return "".join(lines)


def _files():
    return sorted(pathlib.Path("configs").glob("[!_]*.py"))


def check_processes(
    mode: str, address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Checks the flags of one process of several.

    Args:
        mode: --mode.
        address: --coordinator_address; None, as the next two, where JAX is to detect it.
        num_processes: --num_processes.
        process_id: --process_id.

    Raises:
        CommandLineError: they do not fit together, or one is impossible.
    """
    if mode not in _MODES_OF_SEVERAL_PROCESSES:
        raise CommandLineError(
            f"--mode={mode} is the work of one process; leave out --distributed, "
            "--coordinator_address, --num_processes and --process_id"
        )
    if address is None and num_processes is None and process_id is None:
        return
    if address is None or num_processes is None or process_id is None:
        raise CommandLineError(
            "--coordinator_address=HOST:PORT, --num_processes and --process_id go together; "
            "give all three, or --distributed alone (on TPU pods, Slurm and Open MPI)"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise CommandLineError(
            f"--coordinator_address={address} is not HOST:PORT, for example localhost:12345"
        )
    if num_processes < 1:
        raise CommandLineError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise CommandLineError(
            f"--process_id={process_id} must be one of 0 .. {num_processes - 1} "
            f"(--num_processes={num_processes})"
        )


def _explanation(error, argv):
    argument = _flag("config", argv)
    config = ConfigDict() if argument is None else load(argument)
    for path, value in overrides(argv):
        current = _find_field(config, path)
        if str(error).startswith(f"flag --config.{path}="):
            return _wrong_type(path, value, current)
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"there is no flag --{error.flagname}{_nearest_flag(error.flagname, config)}"
    message = str(error.args[0] if len(error.args) == 1 else error)
    if isinstance(error, flags.IllegalFlagValueError):
        return message + _nearest_choice(message)
    return f"{message}; see --help"


def _nearest_flag(name, config):
    """A flag, or a field, for which its whole path has to be given."""
    known = {flag: f"--{flag}" for flag in flags.FLAGS} | _flags_of_fields(config)
    return nearest(name, known, known.get) or "; see --help"


def _nearest_choice(message):
    """The nearest of the values that absl's message says are allowed, for its flags of a few."""
    wrong = re.fullmatch(r"flag --\w+=(.*): value should be one of <(.*)>", message)
    return nearest(wrong[1], wrong[2].split("|")) if wrong else ""


def _nearest_field(name, section, config):
    """A field of the section, or one of another section, with its whole path."""
    known = _flags_of_fields(config) | {field: field for field in section}
    return nearest(name, known, known.get) or f"; its fields are {', '.join(section)}"


def _flags_of_fields(config):
    """Own names of the fields of all sections, without their paths, to their flags."""
    return {path.rpartition(".")[2]: f"--config.{path}" for path in _paths(config)}


def _paths(section, prefix=""):
    for name in section:
        if isinstance(section[name], ConfigDict):
            yield from _paths(section[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _find_field(config, path):
    """The value of `config.path`, or the type of one that is not set."""
    section, name = config, "config"
    for key in path.split("."):
        if not isinstance(section, ConfigDict):
            raise CommandLineError(f"--config.{path}: {name} is a value, it has no fields")
        if key not in section:
            way_out = _nearest_field(key, section, config)
            raise CommandLineError(f"--config.{path}: {name} has no field {key!r}{way_out}")
        kind = section.get_type(key)
        section, name = section[key], f"{name}.{key}"
    return kind if section is None else section


def _wrong_type(path, value, current):
    if isinstance(current, ConfigDict):
        field = next(iter(current), "FIELD")
        example = f"--config.{path}.{field}=..."
        return f"--config.{path}={value}: this is a section; set its fields, such as {example}"
    kind = current if isinstance(current, type) else type(current)
    allowed = _TYPES.get(kind, f"a {kind.__name__}")
    example = "" if isinstance(current, (type, bool, str)) else f"; the file has {current!r}"
    return f"--config.{path}={value} must be {allowed}{example}"


def _flag(name, argv):
    """The value of --NAME, or None."""
    only = flags.FlagValues()
    flags.DEFINE_string(name, None, "", flag_values=only)
    try:
        only(argv, known_only=True)
    except flags.Error:
        return None
    return only[name].value


def overrides(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Paths and values of the arguments --config.PATH=VALUE."""
    for argument in argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.startswith("config."):
            yield name.removeprefix("config."), value


def _line(error, path):
    """' in line N' of the configuration file, where that is known."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}" if error.lineno else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename) == path.absolute()]
    lines += [frame.lineno for frame in frames if pathlib.Path(frame.filename) == path]
    return f" in line {lines[-1]}" if lines else ""
