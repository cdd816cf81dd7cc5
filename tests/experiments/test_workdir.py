"""A workdir belongs to one process and to one configuration."""

import json
import subprocess
import sys

import pytest

from configs import digits
from experiments.run_folder import recorded, workdir
from experiments.system import git
from experiments.system.errors import UserError

HOLDER = """
import pathlib, sys, time
from experiments.run_folder.workdir import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match="in use by another process"),
            workdir.exclusive(tmp_path),
        ):
            pass
        holder.kill()
        holder.wait()
    with workdir.exclusive(tmp_path):
        pass


def test_a_workdir_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written to"),
        workdir.exclusive(tmp_path / "file" / "run"),
    ):
        pass


def test_a_configuration_is_recorded_once_and_then_compared(tmp_path):
    config = digits.get_config()
    workdir.record_configuration(tmp_path, config)
    before = json.loads((tmp_path / "config.json").read_text())
    assert before["model"]["num_layers"] == config.model.num_layers
    workdir.record_configuration(tmp_path, config)

    config.training.learning_rate = 0.5
    with pytest.raises(UserError, match=r"training\.learning_rate: 0\.002 -> 0\.5"):
        workdir.record_configuration(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text()) == before


def test_fields_that_do_not_change_the_training_may_change(tmp_path):
    config = digits.get_config()
    workdir.record_configuration(tmp_path, config)
    config.evaluation.num_importance_samples = 7
    config.sampling.num_images = 3
    workdir.record_configuration(tmp_path, config)
    workdir.check_configuration_of(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["sampling"]["num_images"] == 3


def test_a_field_that_an_earlier_version_did_not_have_has_its_default(tmp_path):
    config = digits.get_config()
    fields = config.to_dict()
    del fields["model"]["dropout"], fields["training"]["optimizer"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert recorded.get_config(str(tmp_path)).to_dict() == config.to_dict()
    workdir.check_configuration_of(tmp_path, config)
    config.model.dropout = 0.5
    with pytest.raises(UserError, match=r"model\.dropout: 0\.0 -> 0\.5"):
        workdir.check_configuration_of(tmp_path, config)


def test_checkpoints_without_a_configuration_are_not_adopted(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json"):
        workdir.record_configuration(tmp_path, digits.get_config())


def test_a_folder_without_a_run_and_a_torn_configuration_are_refused(tmp_path):
    with pytest.raises(UserError, match="train first"):
        workdir.check_configuration_of(tmp_path, digits.get_config())
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(UserError, match="is not JSON"):
        workdir.check_configuration_of(tmp_path, digits.get_config())


def test_the_commit_is_that_of_the_project():
    commit = git.git_commit()
    assert commit == "unknown" or len(commit.removesuffix("-dirty")) == 40
