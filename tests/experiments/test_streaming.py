"""Runs whose images are streamed from files, by the command, are those of resident images."""

import numpy as np
import pytest
from command_line import (
    PICTURES,
    TINY,
    assert_same_bits,
    launch,
    logged,
    saved_arrays,
    without_speed,
)

from configs import digits
from experiments.data import load_dataset

pytestmark = pytest.mark.slow

UNEVEN = (
    "--config.training.steps_per_dispatch=7",
    "--config.training.checkpoint_every=13 steps",
    "--config.training.num_steps=41",
    "--config.dataset.condition=label",
    "--config.model.condition_size=10",
    "--config.dataset.random_affine=0.5",
    "--config.dataset.name=npz",
)


def test_files_of_arrays_on_four_devices_in_uneven_dispatches(tmp_path):
    config = digits.get_config().dataset
    config.condition = "label"
    dataset = load_dataset(config)
    arrays = {}
    for split in ("train", "validation", "test"):
        arrays[split] = getattr(dataset, split)
        arrays[f"{split}_labels"] = getattr(dataset.labels, split)
    np.savez(tmp_path / "arrays.npz", **arrays)
    (tmp_path / "arrays").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "arrays" / name, array)
    runs = {"device": tmp_path / "arrays.npz", "stream": tmp_path / "arrays"}
    for placement, path in runs.items():
        finished = launch(
            f"--workdir={tmp_path / placement}",
            *TINY,
            *UNEVEN,
            PICTURES,
            f"--config.dataset.path={path}",
            f"--config.dataset.placement={placement}",
            devices=4,
        )
        assert (", streamed from " in finished.stderr) == (placement == "stream")
    device, stream = tmp_path / "device", tmp_path / "stream"
    steps = sorted(path.name for path in (device / "checkpoints").iterdir())
    assert steps == sorted(path.name for path in (stream / "checkpoints").iterdir())
    assert "41" in steps and len(steps) >= 2
    for step in steps:
        assert_same_bits(saved_arrays(stream, int(step)), saved_arrays(device, int(step)))
    assert without_speed(logged(stream)) == without_speed(logged(device))
    for name in ("samples.png", "reconstructions.png"):
        assert (stream / name).read_bytes() == (device / name).read_bytes()
