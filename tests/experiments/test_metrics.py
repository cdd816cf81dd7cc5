"""The metrics file and the TensorBoard events, read back from their bytes."""

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from experiments.run_folder.metrics import MetricsLogger, read_metrics
from experiments.run_folder.tensorboard import write_outcome
from experiments.system.errors import UserError
from experiments.system.files import open_atomically, write_json_atomically
from experiments.system.progress import progress_bar

REPOSITORY = Path(__file__).parents[2]


def read_event_file(path):
    """Events of one file of the TFRecord format: length, its CRC, the event, its CRC."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    return events


def tensorboard_scalars(workdir):
    """Scalars as TensorBoard shows them: a session's start purges the steps from its own on."""
    scalars = {}
    paths = sorted((workdir / "tensorboard").glob("events.out.tfevents.*"))
    for event in (event for path in paths for event in read_event_file(path)):
        if event.session_log.status == event_pb2.SessionLog.START:
            scalars = {key: value for key, value in scalars.items() if key[1] < event.step}
        for value in event.summary.value:
            scalars[value.tag, event.step] = value.simple_value
    return scalars


def test_tensorboard_has_hyperparameters_test_figures_and_samples(uninterrupted):
    (path,) = (uninterrupted / "tensorboard").glob("outcome.tfevents.*")
    results = json.loads((uninterrupted / "results.json").read_text())
    values, steps = {}, {}
    for event in read_event_file(path):
        values |= {value.tag: value for value in event.summary.value}
        steps |= {value.tag: event.step for value in event.summary.value}
    for name in ("nll", "elbo", "bits_per_dim"):
        assert values[f"test/{name}"].simple_value == np.float32(results[name])
        assert steps[f"test/{name}"] == results["step"]
    shown = values["samples"].image
    assert shown.encoded_image_string == (uninterrupted / "samples.png").read_bytes()
    with Image.open(uninterrupted / "samples.png") as samples:
        assert (shown.width, shown.height) == samples.size
    content = values["_hparams_/session_start_info"].metadata.plugin_data.content
    start = plugin_hparams_pb2.HParamsPluginData.FromString(content).session_start_info
    config = json.loads((uninterrupted / "config.json").read_text())
    assert start.hparams["training.num_steps"].number_value == 60
    assert start.hparams["training.optimizer"].string_value == config["training"]["optimizer"]
    assert start.hparams["model.latent_shape"].string_value == "(2,)"


def test_an_outcome_takes_the_place_of_the_former_one(tmp_path):
    for nll in (3.0, 2.0):
        write_outcome(tmp_path, 7, {"seed": 0}, {"test/nll": nll}, {})
    (path,) = tmp_path.iterdir()
    values = [value for event in read_event_file(path) for value in event.summary.value]
    assert [v.simple_value for v in values if v.tag == "test/nll"] == [2.0]


def test_lines_are_json_objects_with_step_epoch_and_split_first(tmp_path):
    with MetricsLogger(tmp_path, resume_step=0) as logger:
        logger.write(10, 0.5, "train", {"elbo": np.float32(-90.5), "skipped_steps": 2})
        logger.write(20, 1, "validation", {"elbo": jnp.array(-88.25), "kl_per_layer": [3, 1.5]})

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()

    assert [json.loads(line) for line in lines] == [
        {"step": 10, "epoch": 0.5, "split": "train", "elbo": -90.5, "skipped_steps": 2.0},
        {"step": 20, "epoch": 1.0, "split": "validation", "elbo": -88.25,
         "kl_per_layer": [3.0, 1.5]},
    ]  # fmt: skip
    assert list(json.loads(lines[0]))[:3] == ["step", "epoch", "split"]
    assert read_metrics(tmp_path) == [json.loads(line) for line in lines]


def test_tensorboard_needs_no_pytorch_where_it_is_installed(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('PyTorch is imported')")
    log = (
        "import pathlib, sys\n"
        "from experiments.run_folder.tensorboard import TensorBoardFile\n"
        "TensorBoardFile(pathlib.Path(sys.argv[1]), 0).close()\n"
        "assert 'torch' not in sys.modules\n"
    )
    variables = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-c", log, str(tmp_path / "logs")]
    subprocess.run(command, env=variables, check=True)
    assert len(list((tmp_path / "logs").iterdir())) == 1


def test_tensorboard_gets_every_number(tmp_path):
    with MetricsLogger(tmp_path, resume_step=0) as logger:
        logger.write(10, 0.5, "train", {"elbo": -90.5})
        logger.write(20, 1.0, "validation", {"kl_per_layer": np.arange(10.0)})

    expected = {("train/elbo", 10): -90.5}
    expected |= {(f"validation_kl_per_layer/{i + 1:02d}", 20): float(i) for i in range(10)}
    assert tensorboard_scalars(tmp_path) == expected


@pytest.mark.parametrize("array_type", [np.array, jnp.array])
def test_nan_and_infinity_are_null_in_the_file_and_themselves_in_tensorboard(tmp_path, array_type):
    with MetricsLogger(tmp_path, resume_step=0) as logger:
        logger.write(1, 0.0, "train", {"elbo": float("nan"), "kl": array_type(np.inf)})
        logger.write(2, 0.0, "train", {"kl_per_layer": array_type([1.0, -np.inf])})

    def reject(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=reject) for line in lines)
    assert first["elbo"] is None and first["kl"] is None
    assert second["kl_per_layer"] == [1.0, None]
    scalars = tensorboard_scalars(tmp_path)
    assert np.isnan(scalars["train/elbo", 1])
    assert scalars["train_kl_per_layer/2", 2] == -np.inf


def test_resumed_run_replaces_the_records_after_its_step(tmp_path):
    with MetricsLogger(tmp_path, resume_step=0) as logger:
        for step in (10, 20, 30, 40):
            logger.write(step, step / 10, "train", {"elbo": -float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "epoch": 5.0, "spl')

    with MetricsLogger(tmp_path, resume_step=20) as logger:
        assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20]
        logger.write(30, 3.0, "train", {"elbo": -3.5})

    elbos = {record["step"]: record["elbo"] for record in read_metrics(tmp_path)}
    assert elbos == {10: -10.0, 20: -20.0, 30: -3.5}
    shown = {step: value for (_, step), value in tensorboard_scalars(tmp_path).items()}
    assert shown == elbos
    assert list(tmp_path.glob(".*")) == []


def test_killed_process_loses_no_line_and_the_torn_one_is_skipped(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        from experiments.run_folder.metrics import MetricsLogger
        logger = MetricsLogger(sys.argv[1], resume_step=0)
        for step in range(1, 6):
            logger.write(step, 0.0, "train", {"elbo": -1.0})
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]

    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    start_of_last_line = whole.rstrip(b"\n").rfind(b"\n") + 1
    for size in range(start_of_last_line, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_line_torn_after_its_last_brace_is_kept_and_ended_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 0.0, "split": "train"}')
    assert len(read_metrics(tmp_path)) == 1
    with MetricsLogger(tmp_path, resume_step=1) as logger:
        logger.write(2, 0.0, "train", {})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\x00\x00\x00"])
def test_without_whole_lines_there_are_no_records(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    ("metrics", "message"),
    [({"images": np.zeros((2, 2))}, r"'images'.*\(2, 2\)"), ({"split": 1.0}, "'split'")],
)
def test_refused_metrics_leave_the_file_as_it_was(tmp_path, metrics, message):
    with MetricsLogger(tmp_path, resume_step=0) as logger:
        with pytest.raises(ValueError, match=message):
            logger.write(1, 0.0, "train", {"elbo": -1.0} | metrics)
        assert read_metrics(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a file that is always full")
def test_an_error_of_the_disk_is_raised_whichever_log_meets_it(tmp_path):
    """Each thread of its own, and each log that waits for one, could hide it."""
    for full in ("metrics.jsonl", "tensorboard"):
        workdir = tmp_path / f"run-{len(full)}"
        threads = threading.active_count()
        logger = MetricsLogger(workdir, resume_step=0)
        assert threading.active_count() == threads
        path = max(
            path
            for path in workdir.rglob("*")
            if path.is_file() and full in str(path.relative_to(workdir))
        )
        (descriptor,) = (
            int(link.name)
            for link in Path("/proc/self/fd").iterdir()
            if link.is_symlink() and os.path.realpath(link) == str(path.resolve())
        )
        with open("/dev/full", "wb") as always_full:
            os.dup2(always_full.fileno(), descriptor)
        with pytest.raises(OSError, match="No space left"):
            for step in range(1, 200):
                logger.write(step, 0.0, "train", {"elbo": 1.0})
        with suppress(OSError):
            logger.close()


def test_a_log_that_was_deleted_is_an_error(tmp_path):
    with MetricsLogger(tmp_path, resume_step=0) as logger:
        (tmp_path / "metrics.jsonl").unlink()
        with pytest.raises(FileNotFoundError, match="deleted during the run"):
            logger.write(1, 0.0, "train", {"elbo": 1.0})


def test_close_can_be_repeated(tmp_path):
    logger = MetricsLogger(tmp_path, resume_step=0)
    logger.close()
    logger.close()


def test_json_holds_arrays_paths_and_null_for_nan(tmp_path):
    path = tmp_path / "results.json"
    write_json_atomically(
        path,
        {"nll": np.float32(80.5), "stderr": float("nan"), "kl": jnp.array([1.0, np.inf]),
         "num": np.int64(3), "workdir": Path("runs/mnist"), "nested": {"pair": (1, None)}},
    )  # fmt: skip
    assert json.loads(path.read_text()) == {
        "nll": 80.5, "stderr": None, "kl": [1.0, None],
        "num": 3, "workdir": "runs/mnist", "nested": {"pair": [1, None]},
    }  # fmt: skip


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "results.json"
    write_json_atomically(path, {"nll": 1.0})
    with pytest.raises(TypeError):
        write_json_atomically(path, {"nll": object()})
    with pytest.raises(KeyboardInterrupt), open_atomically(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"nll": 1.0}
    assert os.listdir(tmp_path) == ["results.json"]


def test_progress_bar_of_a_batch_job_prints_once_in_ten_seconds(capsys):
    with progress_bar(total=5000, initial=1000, description="train") as bar:
        for _ in range(4000):
            bar.update()
    printed = capsys.readouterr().err
    assert "train" in printed and "5000/5000" in printed
    assert printed.count("\r") <= 3


def test_disabled_progress_bar_prints_nothing(capsys):
    with progress_bar(total=2, initial=0, description="train", disable=True) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_the_log_of_a_kept_run_is_read_packed_and_its_damage_is_told(tmp_path):
    records = [{"step": step, "epoch": 0.5, "split": "train", "elbo": -1.0} for step in (1, 2)]
    packed = gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode())
    path = tmp_path / "metrics.jsonl.gz"
    path.write_bytes(packed)
    assert read_metrics(tmp_path) == records
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # in the checksum
    for damaged in (packed[:30], b"no gzip", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl\.gz is damaged"):
            read_metrics(tmp_path)
