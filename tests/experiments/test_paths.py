"""Paths as users write them."""

import pathlib

import pytest

from experiments import trained
from experiments.data import preparing
from experiments.system.errors import UserError
from experiments.system.paths import check_name, local_path, path_to_write


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_home_folder_stands_for_a_tilde_and_all_else_is_left(tmp_path):
    assert local_path("~/run", "--workdir") == tmp_path / "run"
    assert preparing.resolve_data_dir("~/data") == tmp_path / "data"
    for path in ("a/~", "./~", "/a b", "lr[1e-3]", "ünï", "-x", "a:b", "#?%20"):
        assert str(local_path(path, "--workdir")) == str(pathlib.Path(path))
    with pytest.raises(UserError, match=rf"no run in --workdir={tmp_path}/absent;"):
        trained.load("~/absent")


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://b", "file:///run", "hf://x"])
def test_addresses_are_refused(address, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", address)
    for refuse in (
        lambda: local_path(address, "--workdir"),
        lambda: trained.load(address),
        lambda: preparing.resolve_data_dir(address),
        lambda: preparing.resolve_data_dir(),
    ):
        with pytest.raises(UserError, match=f"={address} is an address; name a folder"):
            refuse()


def test_a_home_that_nobody_has_is_refused(monkeypatch):
    def getpwuid(number):
        raise KeyError(number)

    with pytest.raises(UserError, match="--workdir=~nobody.here/run: ~nobody.here is no known"):
        local_path("~nobody.here/run", "--workdir")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", getpwuid)
    with pytest.raises(UserError, match="--workdir=~/run: ~ is no known home"):
        local_path("~/run", "--workdir")


@pytest.mark.parametrize("name", ["a\\b", "a\udc80"])
def test_names_that_checkpoints_cannot_have_are_refused_wherever_they_stand(name, tmp_path):
    for workdir in (tmp_path / name, tmp_path / name / "run", pathlib.Path(name)):
        with pytest.raises(UserError, match="choose another name"):
            check_name(workdir)


def test_a_file_is_refused_before_the_work_where_it_cannot_be_written(tmp_path):
    assert path_to_write("~/figure.png", "--figure") == tmp_path / "figure.png"
    with pytest.raises(UserError, match=rf"--figure={tmp_path} is a folder; name a file"):
        path_to_write("~", "--figure")
    with pytest.raises(UserError, match=f"no folder {tmp_path}/absent; create it"):
        path_to_write("~/absent/figure.png", "--figure")
