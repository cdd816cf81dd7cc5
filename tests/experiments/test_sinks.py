"""Records that also go to a CSV file, W&B and MLflow: none twice, none lost but for a kill."""

import csv
import importlib.util
import json
import sys
import types

import pytest

from configs import digits
from experiments.run_folder import sinks
from experiments.run_folder.metrics import MetricsLogger, read_metrics
from experiments.settings.checks import check_configuration
from experiments.system.errors import UserError


def _config(names):
    config = digits.get_config()
    config.training.sinks = names
    return config


def _log(workdir, config, steps, resume_step):
    """The records that a training logs from a checkpoint at `resume_step`."""
    with MetricsLogger(workdir, resume_step=resume_step, config=config) as logger:
        for step in steps:
            logger.write(step, step / 10, "train", {"elbo": -100.0 + step})
            logger.write(step, step / 10, "validation", {"kl_per_layer": [1.0, step / 4]})


def _expected(workdir):
    """(step, name, value) of all records of metrics.jsonl, each once."""
    for record in read_metrics(workdir):
        if "elbo" in record:
            yield record["step"], "train/elbo", record["elbo"]
        for layer, value in enumerate(record.get("kl_per_layer", ()), start=1):
            yield record["step"], f"validation_kl_per_layer/{layer}", value


def _csv(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return [(int(r["step"]), r["name"], float(r["value"])) for r in csv.DictReader(file)]


def test_csv_has_each_number_once_after_resuming(tmp_path):
    config = _config("csv")
    _log(tmp_path, config, [1, 2, 3], 0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,0.4,tra")  # a kill tore it
    _log(tmp_path, config, [3, 4], 2)
    assert _csv(tmp_path) == list(_expected(tmp_path))
    assert [step for step, name, _ in _csv(tmp_path) if name == "train/elbo"] == [1, 2, 3, 4]


def test_edited_csv_files_are_read_or_refused(services, tmp_path):
    _log(tmp_path, _config("csv"), [1, 2], 0)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("\n", "\n\n"))
    _log(tmp_path, _config("csv"), [3], 2)
    assert _csv(tmp_path) == list(_expected(tmp_path))
    text = path.read_text()
    path.write_text(text + "the best,2\n")
    with pytest.raises(UserError, match=r"metrics\.csv has a line of step 'the best'"):
        _log(tmp_path, _config("csv"), [4], 3)
    assert path.read_text() == text + "the best,2\n"
    _log(tmp_path, _config("mlflow"), [4], 3)
    with pytest.raises(UserError, match="the best"):
        _log(tmp_path, _config("mlflow,csv"), [5], 4)
    assert len(services["mlflow"].ended) == 2


class _Wandb(types.ModuleType):
    """The calls of wandb that are used; as there, what is logged stays."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.settings, self.is_broken = {}, [], False

    def init(self, **settings):
        self.settings.append(settings)
        logged = self.runs.setdefault(settings["id"], [])

        def log(scalars, step):
            if self.is_broken:
                raise ConnectionError("no route")
            logged.append((step, scalars))

        return types.SimpleNamespace(log=log, finish=lambda: None)


class _Mlflow(types.ModuleType):
    """The calls of mlflow's client that are used."""

    def __init__(self):
        super().__init__("mlflow")
        self.metrics, self.params, self.ended = {}, {}, []
        self.MlflowClient = lambda: self
        self.get_experiment_by_name = lambda name: None
        self.create_experiment = lambda name: name

    def create_run(self, experiment_id, run_name):
        run = f"{experiment_id}/{run_name}/{len(self.metrics)}"
        self.metrics[run], self.params[run] = [], {}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))

    def log_param(self, run, name, value):
        assert name not in self.params[run]  # as there
        self.params[run][name] = value

    def log_metric(self, run, name, value, step):
        self.metrics[run].append((step, name, value))

    def set_terminated(self, run):
        self.ended.append(run)


@pytest.fixture
def services(monkeypatch):
    found = {"wandb": _Wandb(), "mlflow": _Mlflow()}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_services_get_each_record_once_after_resuming(services, tmp_path):
    workdir = tmp_path / "run"
    config = _config("wandb, mlflow")
    _log(workdir, config, [1, 2, 3], 0)
    _log(workdir, config, [3, 4], 2)
    wandb, mlflow = services["wandb"], services["mlflow"]
    expected = list(_expected(workdir))
    (logged,) = wandb.runs.values()
    flat = [
        (step, name, value)
        for step, scalars in logged
        for name, value in scalars.items()
        if name != "epoch"
    ]
    assert flat == expected
    assert [settings["name"] for settings in wandb.settings] == ["run", "run"]
    assert wandb.settings[0]["config"]["training.optimizer"] == config.training.optimizer
    ((run, metrics),) = mlflow.metrics.items()
    assert [entry for entry in metrics if entry[1] != "epoch"] == expected
    assert mlflow.params[run]["model.num_layers"] == str(config.model.num_layers)
    assert mlflow.ended == [run, run]


def test_a_service_that_fails_does_not_stop_the_training(services, tmp_path, capsys):
    services["wandb"].is_broken = True
    _log(tmp_path, _config("wandb,csv"), [1, 2], 0)
    assert capsys.readouterr().err.count("no more records go to wandb (ConnectionError") == 1
    assert _csv(tmp_path) == list(_expected(tmp_path)) and len(_csv(tmp_path)) == 6


def test_nothing_is_imported_or_written_unless_named(services, tmp_path):
    _log(tmp_path, _config(""), [1], 0)
    assert not services["wandb"].settings and not services["mlflow"].metrics
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(
        UserError, match=rf"needs the package {name}.*pip install -e '\.\[{name}\]'"
    ):
        sinks.check_sinks(_config(name))
    sinks.check_sinks(_config(""))


@pytest.mark.parametrize("names", ["wandb,excel", "csv,", "CSV"])
def test_other_sinks_are_refused(names):
    with pytest.raises(UserError, match="csv, wandb, mlflow"):
        check_configuration(_config(names))


def test_the_names_that_are_allowed_are_those_that_there_are():
    check_configuration(_config(",".join(sinks.SINKS)))


def test_mlflow_itself_has_each_record_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"file://{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    workdir, config = tmp_path / "run", _config("mlflow")
    _log(workdir, config, [1, 2, 3], 0)
    _log(workdir, config, [3, 4], 2)
    run = json.loads((workdir / "mlflow.json").read_text())["run"]
    history = mlflow.MlflowClient(uri).get_metric_history(run, "train/elbo")
    assert [(m.step, m.value) for m in history] == [(s, -100.0 + s) for s in (1, 2, 3, 4)]


def test_wandb_itself_takes_the_records_offline(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    workdir, config = tmp_path / "run", _config("wandb")
    _log(workdir, config, [1, 2, 3], 0)
    _log(workdir, config, [3, 4], 2)
    assert "no more records" not in capsys.readouterr().err
    run = json.loads((workdir / "wandb.json").read_text())["run"]
    assert len(list((workdir / "wandb").glob(f"offline-run-*/run-{run}.wandb"))) == 2
