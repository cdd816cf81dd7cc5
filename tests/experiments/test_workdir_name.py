"""Where a run goes that is given no workdir."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments.command_line.workdir_name import LONGEST_NAME, default_workdir
from experiments.system.paths import check_name

FILE = "configs/mnist_mlp.py"


def _name(*arguments, config=FILE):
    argv = ["main", *(f"--config.{argument}" for argument in arguments)]
    overridden = dict(argument.partition("=")[::2] for argument in arguments)
    return default_workdir(config, overridden, argv).as_posix()


def test_without_overrides_it_is_that_of_the_configuration():
    assert _name() == "runs/mnist_mlp"
    assert _name(config="/elsewhere/my file.py:dlgm") == "runs/my file_dlgm"


def test_overrides_are_named_as_they_were_written_and_in_that_order():
    assert _name("training.learning_rate=3e-3") == "runs/mnist_mlp-learning_rate=3e-3"
    assert (
        _name("training.warmup=500 steps", "model.latent_shape=(2,)", config=f"{FILE}:dlgm")
        == "runs/mnist_mlp_dlgm-warmup=500_steps-latent_shape=(2,)"
    )
    assert _name("model.num_layers=4", "seed=1") == "runs/mnist_mlp-num_layers=4-seed=1"


def test_fields_of_one_name_keep_their_section():
    assert _name("training.batch_size=50") == "runs/mnist_mlp-training.batch_size=50"


@pytest.mark.parametrize(
    "free",
    [
        "evaluation.num_examples=9",
        "training.num_epochs=60",
        "dataset.data_dir=/data",
        "paper.nll=1",
    ],
)
def test_what_a_relaunch_may_change_is_no_part_of_the_name(free):
    assert _name(free) == "runs/mnist_mlp"
    assert _name("seed=1", free) == _name("seed=1")


@pytest.mark.parametrize("value", ["a/../../b", "a\\b", "é\udcff", "x" * 400, ".", "a\nb", "a:b*?"])
def test_any_value_gives_a_short_name_that_a_file_system_takes(value, tmp_path):
    name = _name(f"dataset.name={value}")
    folder = pathlib.Path(name).name
    assert len(folder) <= LONGEST_NAME
    assert pathlib.Path(name) == pathlib.Path("runs") / folder
    check_name(tmp_path / folder)
    (tmp_path / folder).mkdir()
    assert os.listdir(tmp_path) == [folder]


def test_values_that_look_the_same_in_a_name_have_different_ones():
    names = {_name(f"dataset.name={value}") for value in ("a/b", "a:b", "x" * 300, "x" * 301)}
    assert len(names) == 4


def test_the_command_takes_it():
    arguments = ["--config=configs/digits.py", "--config.seed", "3", "--mode=report"]
    code = "import sys; from experiments import main; main.parse_flags(sys.argv); "
    code += "print(main._workdir(), 'jax' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert finished.stdout.split() == ["runs/digits-seed=3", "False"], finished.stderr
