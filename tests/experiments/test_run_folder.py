"""A run folder belongs to one process and to one configuration."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from configs import digits
from experiments.run_folder import configuration, same_run
from experiments.run_folder.extension import record_extension, recorded_extension
from experiments.run_folder.folder import RunFolder
from experiments.run_folder.lock import lock
from experiments.run_folder.same_run import check_configuration_of
from experiments.system import git
from experiments.system.errors import UserError
from experiments.system.files import remove_temporary_files
from experiments.training.experiment import create_experiment

HOLDER = """
import pathlib, sys, time
from experiments.run_folder.lock import lock
with lock(pathlib.Path(sys.argv[1])):
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
            lock(tmp_path),
        ):
            pass
        holder.kill()
        holder.wait()
    with lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_named_as_such(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\)"), lock(tmp_path):
        pass


def test_a_workdir_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written to"),
        lock(tmp_path / "file" / "run"),
    ):
        pass


def record(path, config):
    with RunFolder(path) as folder:
        folder.open_for_training(config, None, "images")


def test_a_configuration_is_recorded_once_and_then_compared(tmp_path):
    config = digits.get_config()
    record(tmp_path, config)
    before = json.loads((tmp_path / "config.json").read_text())
    assert before["model"]["num_layers"] == config.model.num_layers
    record(tmp_path, config)

    config.training.learning_rate = 0.5
    with pytest.raises(UserError, match=r"training\.learning_rate: 0\.002 -> 0\.5"):
        record(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text()) == before


def test_fields_that_do_not_change_the_training_may_change(tmp_path):
    config = digits.get_config()
    record(tmp_path, config)
    config.evaluation.num_importance_samples = 7
    config.sampling.num_images = 3
    record(tmp_path, config)
    check_configuration_of(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["sampling"]["num_images"] == 3


def test_only_what_asks_for_a_longer_training_is_told_what_that_may_change(tmp_path, monkeypatch):
    config = digits.get_config()
    record(tmp_path, config)
    recorded = json.loads((tmp_path / "config.json").read_bytes())
    progress = {"dataset_fingerprint": "a", "config": recorded}
    config.seed += 1
    monkeypatch.setattr(same_run, "read_continuations", lambda workdir: [{}])
    with pytest.raises(UserError, match="seed: 0 -> 1") as refused:
        same_run.check_checkpoint(tmp_path, 3, progress, config, "a")
    assert "--extend" not in str(refused.value)
    with pytest.raises(UserError, match="--extend changes its length alone"):
        same_run.check_can_train(tmp_path, config, extend=True)


def test_a_field_that_an_earlier_version_did_not_have_has_its_default(tmp_path):
    config = digits.get_config()
    fields = config.to_dict()
    del fields["model"]["dropout"], fields["training"]["optimizer"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert configuration.get_config(str(tmp_path)).to_dict() == config.to_dict()
    check_configuration_of(tmp_path, config)
    config.model.dropout = 0.5
    with pytest.raises(UserError, match=r"model\.dropout: 0\.0 -> 0\.5"):
        check_configuration_of(tmp_path, config)


def test_checkpoints_without_a_configuration_are_not_adopted(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json"):
        record(tmp_path, digits.get_config())


def test_a_folder_without_a_run_and_a_torn_configuration_are_refused(tmp_path):
    with pytest.raises(UserError, match="train first"):
        check_configuration_of(tmp_path, digits.get_config())
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(UserError, match="is not JSON"):
        check_configuration_of(tmp_path, digits.get_config())


def test_other_processes_neither_read_nor_write_nor_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.distributed.processes.is_first_process", lambda: False)
    config = digits.get_config()
    with RunFolder(tmp_path / "run") as folder:
        folder.check_can_train(config)
        folder.check_trained(config)
        folder.lock()
        folder.open_for_training(config, "configs/digits.py", "images")
        with folder.logging_from(0):
            folder.log(1, 0.0, "train", {"elbo": -1.0})
        folder.raise_save_errors()
        folder.save(None, {}, None)
        folder.wait_for_saves()
        folder.save_arrays("test", elbo=[1.0])
        folder.save_results({})
    assert not (tmp_path / "run").exists()


@pytest.fixture
def extension(tmp_path):
    """A run folder, and the file that its model uses parts of."""
    file = tmp_path / "mine" / "bijector.py"
    file.parent.mkdir()
    file.write_text("raise SystemExit('imported')")
    workdir = tmp_path / "run"
    workdir.mkdir()
    return workdir, file


def test_the_file_of_an_extension_is_recorded_with_its_whole_path(extension, monkeypatch):
    workdir, file = extension
    assert recorded_extension(workdir) is None
    monkeypatch.chdir(file.parent)
    record_extension(workdir, "bijector.py:wide")
    assert recorded_extension(workdir) == f"{file}:wide"


def test_code_that_changed_or_is_not_ones_own_is_not_run(extension, monkeypatch):
    workdir, file = extension
    record_extension(workdir, str(file))
    file.write_text("raise SystemExit('changed')")
    with pytest.raises(UserError, match=f"has changed since; give --config={file}"):
        recorded_extension(workdir)
    record_extension(workdir, str(file))
    with monkeypatch.context() as patch:
        patch.setattr("os.getuid", lambda: -1)
        with pytest.raises(UserError, match="belongs to another user; give --config="):
            recorded_extension(workdir)
    file.unlink()
    with pytest.raises(UserError, match="cannot be read .No such file"):
        recorded_extension(workdir)


def test_a_folder_of_somebody_else_does_not_choose_what_is_run(extension):
    """Unpacked or copied, all that it holds belongs to the user who does so."""
    workdir, file = extension
    inside = workdir / "bijector.py"
    inside.write_bytes(file.read_bytes())
    record_extension(workdir, str(inside))
    with pytest.raises(UserError, match="lies in that folder"):
        recorded_extension(workdir)
    record = workdir / "extension.json"
    for text, reason in {
        '{"config": "run/bijector.py", "sha256": ""}': "has no absolute path",
        f'{{"config": "{file}", "sha256": "00"}}': "has changed since",
        f'{{"config": "{file}"}}': r"extension\.json cannot be read .*give --config=FILE",
        "[]": r"extension\.json cannot be read .*give --config=FILE",
    }.items():
        record.write_text(text)
        with pytest.raises(UserError, match=reason):
            recorded_extension(workdir)


def test_the_commit_is_that_of_the_project():
    commit = git.git_commit()
    assert commit == "unknown" or len(commit.removesuffix("-dirty")) == 40


@pytest.fixture(params=["no repository", "somebody else's", "no git"])
def copy_of_the_code(request, tmp_path, monkeypatch):
    """Code that lies in no repository of its own."""
    monkeypatch.setattr(git, "ROOT", tmp_path / "code")
    git.ROOT.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if request.param == "somebody else's":
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    if request.param == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("variable", "commit"),
    [
        (None, "unknown"),
        ("", "unknown"),
        ("a4027e6", "a4027e6"),
        ("A4027E6-dirty", "a4027e6-dirty"),
        (f"{'3793498b' * 5}\n", "3793498b" * 5),
    ],
)
def test_without_a_repository_a_variable_names_the_commit(
    copy_of_the_code, monkeypatch, variable, commit
):
    monkeypatch.delenv(git.VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(git.VARIABLE, variable)
    assert git.git_commit() == commit


@pytest.mark.parametrize(
    "variable", ["main", "a4027e", "3793498b" * 5 + "0", "a4027e6-changed", "a4027e6 a4027e6"]
)
def test_what_names_no_commit_is_refused(copy_of_the_code, monkeypatch, variable):
    monkeypatch.setenv(git.VARIABLE, variable)
    message = f"SERE_JAX_COMMIT='{variable}' must be a commit, 7 to 40 hexadecimal digits"
    with pytest.raises(UserError, match=message):
        git.git_commit()
    with pytest.raises(UserError, match=message):
        create_experiment(digits.get_config())


def test_a_repository_counts_more_than_the_variable(tmp_path, monkeypatch):
    monkeypatch.setattr(git, "ROOT", tmp_path)
    monkeypatch.setenv(git.VARIABLE, "no commit")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], [*author, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    commit = git.git_commit()
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert git.git_commit() == f"{commit}-dirty"


def test_only_files_that_were_left_half_written_are_removed(tmp_path):
    left = tmp_path / ".results.json.17.tmp"
    kept = [tmp_path / name for name in (".mine.tmp", ".vimrc.swp", "a.17.tmp", ".a.b.tmp")]
    for path in (left, *kept):
        path.write_text("{")
    (tmp_path / ".folder.17.tmp").mkdir()
    remove_temporary_files(tmp_path)
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / ".folder.17.tmp"}
