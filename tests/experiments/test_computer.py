"""What records say of the computer: of a text of the kernel, and of this machine."""

import datetime
import json
import platform

import jax

import sere_jax
from experiments.system import computer


def test_a_record_names_the_processor_the_devices_and_the_versions(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: Model A: fast\nmodel name: B\n")
    monkeypatch.setattr(computer, "CPU_INFO", tmp_path / "cpuinfo")
    before = datetime.datetime.now(datetime.UTC).date()
    described = json.loads(json.dumps(computer.describe(("jax", "no_such_package"))))
    after = datetime.datetime.now(datetime.UTC).date()

    assert described["cpu"] == "Model A: fast"
    assert described["devices"] == [device.device_kind for device in jax.devices()]
    assert before <= datetime.date.fromisoformat(described["date"]) <= after
    assert described["versions"] == {
        "python": platform.python_version(),
        "sere-jax": sere_jax.__version__,
        "jax": jax.__version__,
        "no_such_package": "not installed",
    }


def test_without_a_list_of_the_kernel_the_platform_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(computer, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert computer.describe()["cpu"] == "arm64"
