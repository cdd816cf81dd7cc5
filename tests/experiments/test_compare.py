"""Several runs beside each other: `python -m experiments.compare`."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import digits
from experiments.reporting.comparison import aligned, notes, on_its_side, read_runs, rows
from experiments.settings.checks import as_json

RESULTS = {
    "nll": 80.0,
    "nll_stderr": 0.25,
    "elbo": -81.5,
    "bits_per_dim": 0.15,
    "train_seconds": 90,
    "epoch": 30.0,
}


def _write(folder, epochs, results=None, packed=False, **training):
    config = digits.get_config()
    config.training.update(training)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(as_json(config)))
    records = [
        {"step": 7 * e, "epoch": float(e), "split": split, "elbo": -100 + (e if e < 20 else -e)}
        for e in range(1, epochs + 1)
        for split in ("train", "validation")
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if packed:
        (folder / "metrics.jsonl.gz").write_bytes(gzip.compress(lines))
    elif epochs:
        (folder / "metrics.jsonl").write_bytes(lines)
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def folders(tmp_path):
    """A finished run, one that is kept, one under way and one that has only begun."""
    return [
        _write(tmp_path / "finished", 30, RESULTS, num_epochs=30),
        _write(tmp_path / "kept", 30, RESULTS, packed=True, num_epochs=30, learning_rate=3e-3),
        _write(tmp_path / "under_way", 4, num_epochs=30, optimizer="adamax"),
        _write(tmp_path / "begun", 0, num_epochs=30),
    ]


def test_the_table_has_what_differs_and_what_came_out(folders):
    columns, cells = rows(read_runs(folders))
    assert columns[:3] == ["run", "optimizer", "learning_rate"]
    assert columns[3] == "epochs"  # nothing else differs
    done = ["30", "-81.00 (epoch 19)", "80.00 ± 0.25", "-81.50", "0.1500", "1.5"]
    own = str(digits.get_config().training.learning_rate)
    assert cells == [
        ["finished", "adam", own, *done],
        ["kept", "adam", "0.003", *done],
        ["under_way", "adamax", own, "4 of 30", "-96.00 (epoch 4)", "-", "-", "-", "-"],
        ["begun", "adam", own, "0", "-", "-", "-", "-", "-"],
    ]


def test_a_table_that_would_be_too_wide_has_a_column_for_each_run(folders):
    columns, cells = rows(read_runs(folders))
    assert on_its_side(columns, cells) == (columns, cells)
    many = [*columns, *(f"field_{i}" for i in range(9))]
    wide = [[*row, *"123456789"] for row in cells]
    turned, lines = on_its_side(many, wide)
    assert turned == ["run", "finished", "kept", "under_way", "begun"]
    assert lines[-1] == ["field_8", "9", "9", "9", "9"] and len(lines) == len(many) - 1
    assert len(set(map(len, aligned(turned, lines)))) == 1


def test_a_note_says_that_nats_of_other_images_do_not_compare(folders, tmp_path):
    assert notes(read_runs(folders)) == []
    path = _write(tmp_path / "other", 0) / "config.json"
    path.write_text(path.read_text().replace('"name": "digits"', '"name": "mnist"'))
    assert notes(read_runs([folders[0], path.parent])) == [
        "note: dataset.name differ; nats of different images do not compare"
    ]


def test_runs_are_compared_as_they_were_evaluated_last(folders, tmp_path):
    evaluation = digits.get_config().evaluation.to_dict() | {"split": "validation"}
    other = _write(tmp_path / "other", 30, RESULTS | {"evaluation": evaluation}, num_epochs=30)
    runs = read_runs([folders[0], other])
    columns, cells = rows(runs)
    assert [row[columns.index("split")] for row in cells] == ["test", "validation"]
    assert notes(runs) == ["note: evaluation.split differ; nats of different images do not compare"]


def test_runs_of_one_name_have_their_paths(tmp_path):
    folders = [_write(tmp_path / side / "run", 1) for side in "ab"]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_an_earlier_configuration_has_the_defaults_of_later_fields(folders):
    path = folders[0] / "config.json"
    recorded = json.loads(path.read_text())
    del recorded["training"]["schedule_horizon"]
    path.write_text(json.dumps(recorded))
    columns, _ = rows(read_runs(folders))
    assert columns[:4] == ["run", "optimizer", "learning_rate", "epochs"]


def _compare(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.compare", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_and_draws_and_leaves_the_runs_alone(folders, tmp_path):
    before = {path: path.read_bytes() for f in folders for path in f.iterdir()}
    picture = tmp_path / "curves.png"
    finished = _compare(*folders, f"--picture={picture}")
    assert finished.returncode == 0, finished.stderr
    assert [line.split("|")[1].strip() for line in finished.stdout.splitlines()[2:-1]] == [
        folder.name for folder in folders
    ]
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    # One colour for each run that has a curve: their hues are far from the axes' greys.
    coloured = pixels[np.ptp(pixels.astype(int), axis=1) > 60]
    assert len(np.unique(coloured // 64, axis=0)) >= 3
    assert {path: path.read_bytes() for f in folders for path in f.iterdir()} == before


def test_a_folder_that_is_no_run_is_one_line(folders, tmp_path):
    finished = _compare(folders[0], tmp_path, f"--picture={tmp_path / 'curves.png'}")
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {tmp_path} is no run")
    assert finished.stderr.count("\n") == 1 and not (tmp_path / "curves.png").exists()
