"""Where the records of a run also go: a CSV file, Weights & Biases, MLflow.

`metrics.jsonl` has all of them. A package is imported where `config.training.sinks` names it alone,
and what it raises does not stop a training.
"""

import csv
import functools
import importlib
import importlib.util
import json
import pathlib
import secrets
import sys
from collections.abc import Mapping
from typing import Any

from experiments.settings.checks import flat
from experiments.system.errors import UserError
from experiments.system.files import open_atomically, write_json_atomically

CSV_FILE = "metrics.csv"
PROJECT = "sere-jax"  # of W&B; the experiment of MLflow
_COLUMNS = ("step", "epoch", "split", "name", "value")


class CsvSink:
    """`metrics.csv`, a line for each number; those of steps after `resume_step` are dropped."""

    def __init__(self, workdir: pathlib.Path, config: Any, resume_step: int):
        del config
        path = workdir / CSV_FILE
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a kill may have torn the last line
        rows = [row for row in list(csv.reader(whole.splitlines()))[1:] if row]
        for row in rows:
            if not row[0].isdecimal():
                raise UserError(
                    f"{path} has a line of step {row[0]!r}, which is no number; correct "
                    "it, or move the file elsewhere (metrics.jsonl has all records)"
                )
        kept = [row for row in rows if int(row[0]) <= resume_step]
        with open_atomically(path) as file:
            lines = [_COLUMNS, *kept]
            file.write("".join(",".join(row) + "\n" for row in lines).encode())
        self._file = path.open("a")

    def write(self, step: int, epoch: float, split: str, scalars: Mapping[str, float]) -> None:
        """Adds a line for each of `scalars`, which are named as in TensorBoard."""
        rows = [(step, epoch, split, name, value) for name, value in scalars.items()]
        csv.writer(self._file, lineterminator="\n").writerows(rows)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _Service:
    """A service that cannot take records back: those that it has are not sent again.

    `NAME.json` in the workdir has the run's identifier there, and which records were sent last. A
    resumed run repeats its records to the bit, so that those may be skipped.
    """

    package: str

    def __init__(self, workdir: pathlib.Path, config: Any, resume_step: int):
        del resume_step
        self._path = workdir / f"{self.package}.json"
        self._sent: dict[str, Any] = {"run": None, "step": -1, "splits": []}
        if self._path.exists():
            self._sent = json.loads(self._path.read_bytes())
        module = importlib.import_module(self.package)
        self._sent["run"] = self._open(module, workdir, flat(config.to_dict()), self._sent["run"])
        write_json_atomically(self._path, self._sent)

    def write(self, step: int, epoch: float, split: str, scalars: Mapping[str, float]) -> None:
        """Sends `scalars`, unless they were."""
        last, splits = self._sent["step"], self._sent["splits"]
        if step < last or (step == last and split in splits):
            return
        self._sent |= {"step": step, "splits": [*(splits if step == last else []), split]}
        write_json_atomically(self._path, self._sent)  # first: rather lost there than twice
        self._send(step, {**scalars, "epoch": epoch})

    def _open(self, module: Any, workdir: pathlib.Path, fields: dict, run: str | None) -> str:
        """Starts the run, or goes on with `run`; returns its identifier."""
        raise NotImplementedError

    def _send(self, step: int, scalars: dict[str, float]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Ends the session."""
        raise NotImplementedError


class WandbSink(_Service):
    """Weights & Biases; WANDB_MODE=offline keeps all in the workdir, for `wandb sync`."""

    package = "wandb"

    def _open(self, module, workdir, fields, run):
        run = run or secrets.token_hex(4)
        self._run = module.init(
            project=PROJECT, name=workdir.name, id=run, resume="allow", dir=workdir, config=fields
        )
        return run

    def _send(self, step, scalars):
        self._run.log(scalars, step=step)

    def close(self) -> None:
        """Ends the session."""
        self._run.finish()


class MlflowSink(_Service):
    """MLflow; MLFLOW_TRACKING_URI says where, a file or a server."""

    package = "mlflow"

    def _open(self, module, workdir, fields, run):
        self._client = module.MlflowClient()
        if run is None:
            experiment = self._client.get_experiment_by_name(PROJECT)
            where = experiment.experiment_id if experiment else None
            where = where or self._client.create_experiment(PROJECT)
            run = self._client.create_run(where, run_name=workdir.name).info.run_id
            for name, value in fields.items():
                self._client.log_param(run, name, str(value)[:250])
        return run

    def _send(self, step, scalars):
        for name, value in scalars.items():
            self._client.log_metric(self._sent["run"], name, value, step=step)

    def close(self) -> None:
        """Ends the session."""
        self._client.set_terminated(self._sent["run"])


SINKS: dict[str, type[CsvSink] | type[_Service]] = {
    "csv": CsvSink,
    "wandb": WandbSink,
    "mlflow": MlflowSink,
}


def names_of_sinks(config: Any) -> list[str]:
    """The names in `config.training.sinks`."""
    return [name.strip() for name in config.training.sinks.split(",") if name.strip()]


def check_sinks(config: Any) -> None:
    """Checks that the packages are there, without importing them.

    Raises:
        UserError: one is not.
    """
    for name in names_of_sinks(config):
        package = getattr(SINKS[name], "package", "csv")
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"config.training.sinks={config.training.sinks!r} needs the package {package}, "
                f"which is not installed; pip install -e '.[{name}]', or leave {name} out"
            )


class Sinks:
    """All sinks of a run; see the module."""

    def __init__(self, workdir: pathlib.Path, config: Any, resume_step: int):
        self._open: dict[str, CsvSink | _Service] = {}
        try:
            for name in names_of_sinks(config):
                opened = functools.partial(SINKS[name], workdir, config, resume_step)
                if sink := self._attempt(name, opened):
                    self._open[name] = sink
        except BaseException:
            self.close()
            raise

    def write(self, step: int, epoch: float, split: str, scalars: Mapping[str, float]) -> None:
        """Gives a record to all of them."""
        for name, sink in list(self._open.items()):
            self._attempt(name, lambda sink=sink: sink.write(step, epoch, split, scalars))

    def close(self) -> None:
        """Closes all of them; closing again does nothing."""
        for name, sink in list(self._open.items()):
            self._attempt(name, sink.close)
            self._open.pop(name, None)

    def _attempt(self, name, function):
        if name == "csv":
            return function()  # errors of the disk are those of the run
        try:
            return function()
        except Exception as error:  # whatever a service's package raises
            self._open.pop(name, None)
            print(
                f"note: no more records go to {name} ({type(error).__name__}: {error}); "
                "metrics.jsonl has all, and the next launch tries again",
                file=sys.stderr,
            )
        return None
