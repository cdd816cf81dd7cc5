"""The report, parsed with html.parser."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from configs import digits
from experiments.reporting.report import write_report
from experiments.settings.fields import defaults
from experiments.system.errors import UserError

HOSTILE = '</td><script>alert("1")</script><img src=x onerror=alert(1)>&amp;\''
VOID_TAGS = {"meta", "img", "br", "link"}
CONFIG = {
    "seed": 0,
    "model": {
        "num_layers": 16,
        "hidden": [256, 128],
        "coupling": {"kind": "affine", "blocks": [{"width": 64}, {"width": 32}]},
    },
    "training": {"learning_rate": 1e-05, "clip": None, "ema": True, "note": ""},
    "paper": {"nll": 79.84},
}
RESULTS = {
    "nll": 80.124,
    "nll_stderr": 0.031,
    "elbo": -84.33,
    "bits_per_dim": 0.14744,
    "num_importance_samples": 1000,
    "num_examples": 10000,
    "step": 60000,
    "num_params": 4123456,
    "train_seconds": 98765.4,
    "git_commit": "0f3c9d2e",
    "command": "python -m experiments.train --workdir=runs/mnist",
    "kl_per_layer": [6.012345678, 0.5],
    "other_values": [6.012345678, 0.5],
}


class Page(HTMLParser):
    """Collects the text of each table row and caption, images and the tags that occur."""

    def __init__(self, path):
        super().__init__()
        self.rows, self.captions, self.images = {}, [], []
        self.cards, self.charts, self.folded = [], [], []
        self.tags, self.open_tags = set(), []
        self._texts, self._summaries, self._label = [], [], ""
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if dict(attributes).get("class") == "chart":
            self.charts.append(dict(attributes)["aria-label"])
        if tag == "details" and ("open", None) not in attributes:
            self.folded.append(len(self._summaries))
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)
        if tag in ("th", "td", "figcaption", "summary", "dt", "dd"):
            self._texts.append("")

    def handle_data(self, data):
        self.text += data
        if self._texts:
            self._texts[-1] += data

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag
        if tag == "th":
            self._label = self._texts.pop()
        elif tag == "td":
            self.rows[".".join([*self._summaries, self._label])] = self._texts.pop()
        elif tag == "dt":
            self.cards.append([self._texts.pop()])
        elif tag == "dd":
            self.cards[-1].append(self._texts.pop())
        elif tag == "figcaption":
            self.captions.append(self._texts.pop())
        elif tag == "summary":
            self._summaries.append(self._texts.pop())
        elif tag == "details":
            self._summaries.pop()


def write_run(workdir, config=CONFIG, results=RESULTS, metrics=()):
    if config is not None:
        (workdir / "config.json").write_text(json.dumps(config))
    if results is not None:
        (workdir / "results.json").write_text(json.dumps(results))
    lines = "".join(json.dumps(record) + "\n" for record in metrics)
    (workdir / "metrics.jsonl").write_text(lines)
    return workdir


def save_png(path, value):
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def test_results_have_their_units_and_the_papers_figure(tmp_path):
    path = write_report(write_run(tmp_path))
    assert path == tmp_path / "report.html"
    rows = Page(path).rows
    assert rows["Negative log-likelihood of the test set"] == (
        "80.12 ± 0.03 nats paper: 79.84 nats, difference +0.28"
    )
    assert rows["ELBO of the test set"] == "-84.33 nats"
    assert rows["Bits per dimension of the log-likelihood"] == "0.1474"
    assert rows["Importance samples per example"] == "1,000"
    assert rows["Images of the test set"] == "10,000"
    assert rows["Step of the weights evaluated"] == "60,000"
    assert rows["Parameters"] == "4,123,456"
    assert rows["Training time"] == "1 d 3 h"
    assert rows["Git commit of the training"] == "0f3c9d2e"
    assert rows["Command of the training"] == RESULTS["command"]
    assert rows["other_values"] == "6.01235, 0.5"
    assert "kl_per_layer" not in rows


def test_a_training_that_was_made_longer_is_told_in_words(tmp_path):
    entry = {"from_epochs": 30.0, "to_epochs": 50.0, "schedule": "hold", "command": "python"}
    path = write_report(write_run(tmp_path, results=RESULTS | {"continuations": [entry]}))
    assert Page(path).rows["Trained for longer"] == "from 30.00 to 50.00 epochs, learning rate held"


def test_the_results_own_paper_nll_comes_before_the_configurations(tmp_path):
    rows = Page(write_report(write_run(tmp_path, results=RESULTS | {"paper_nll": 81.0}))).rows
    assert "paper: 81.00 nats, difference -0.88" in rows["Negative log-likelihood of the test set"]
    assert "paper_nll" not in rows


@pytest.mark.parametrize("paper", [None, {}, {"nll": None}, "arXiv"])
def test_no_comparison_without_the_papers_figure(tmp_path, paper):
    rows = Page(write_report(write_run(tmp_path, config={"paper": paper}))).rows
    assert rows["Negative log-likelihood of the test set"] == "80.12 ± 0.03 nats"


def test_missing_and_null_results(tmp_path):
    results = {"nll": None, "elbo": None}
    rows = Page(write_report(write_run(tmp_path, config={}, results=results))).rows
    assert rows["Negative log-likelihood of the test set"] == "not available"
    assert rows["ELBO of the test set"] == "not available"
    assert "Parameters" not in rows


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"),
     (3600, "1 h 0 min"), (86399, "23 h 59 min"), (86400, "1 d 0 h"), (1e6, "11 d 13 h")],
)  # fmt: skip
def test_training_time_is_readable(tmp_path, seconds, shown):
    page = Page(write_report(write_run(tmp_path, results={"train_seconds": seconds})))
    assert page.rows["Training time"] == shown


def test_small_standard_error_keeps_a_digit(tmp_path):
    results = {"nll": 80.0, "nll_stderr": 0.0042}
    rows = Page(write_report(write_run(tmp_path, config=None, results=results))).rows
    assert rows["Negative log-likelihood of the test set"] == "80.00 ± 0.004 nats"


def test_report_of_a_run_that_has_not_been_evaluated(tmp_path):
    metrics = [
        {"step": 100, "epoch": 1.0, "split": "validation", "elbo": -88.5},
        {"step": 200, "epoch": 2.0, "split": "validation", "elbo": -95.0},
        {"step": 300, "epoch": 3.0, "split": "validation", "elbo": None},
        {"step": 300, "epoch": 3.0, "split": "train", "elbo": -87.0, "images_per_second": 5200.4,
         "skipped_steps": 2.0},
    ]  # fmt: skip
    page = Page(write_report(write_run(tmp_path, results=None, metrics=metrics)))
    assert "The final evaluation has not run." in page.text
    assert page.rows["Negative log-likelihood in the paper"] == "79.84 nats"
    assert page.rows["Last logged step"] == "300 (epoch 3.00)"
    assert page.rows["Best validation ELBO"] == "-88.50 nats at step 100"
    assert page.rows["Last training ELBO"] == "-87.00 nats"
    assert page.rows["Images per second"] == "5,200"
    assert page.rows["Skipped steps"] == "2"


def test_configuration_keeps_its_nesting(tmp_path):
    page = Page(write_report(write_run(tmp_path)))
    assert page.folded == [0], "all settings, but no section of them"
    prefix = "All settings."
    settings = {key: value for key, value in page.rows.items() if key.startswith(prefix)}
    assert {key.removeprefix(prefix): value for key, value in settings.items()} == {
        "seed": "0",
        "model.num_layers": "16",
        "model.hidden": "256, 128",
        "model.coupling.kind": "affine",
        "model.coupling.blocks.0.width": "64",
        "model.coupling.blocks.1.width": "32",
        "training.learning_rate": "1e-05",
        "training.clip": "null",
        "training.ema": "true",
        "training.note": '""',
        "paper.nll": "79.84",
    }


def test_every_figure_is_inside_the_page_with_its_caption(tmp_path):
    names = ["zebra <1>.png", "kl_per_layer.png", "real_images.png", "samples.png",
             "reconstructions.png", "attention.png"]  # fmt: skip
    for value, name in enumerate(names):
        save_png(tmp_path / name, value)
    page = Page(write_report(write_run(tmp_path)))

    shown = []
    for image in page.images:
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            assert picture.format == "PNG"
            shown.append(names[picture.getpixel((0, 0))])
    assert shown == ["samples.png", "real_images.png", "reconstructions.png", "attention.png",
                     "zebra <1>.png"]  # fmt: skip
    assert page.captions[3:5] == ["attention.png", "zebra <1>.png"]
    assert [image["alt"] for image in page.images] + page.charts == page.captions
    assert page.charts == [
        "Layer 1 carries 6.01 nats, the most, and layer 2 0.50 nats. All layers together carry "
        "6.51 nats; all 2 carry at least 0.1 nats."
    ]


def test_cards_compare_the_headline_with_the_paper_and_with_what_is_expected(tmp_path):
    config = CONFIG | {"paper": {"nll": 79.84, "expected_nll": 80.5}}
    page = Page(write_report(write_run(tmp_path, config)))
    assert page.cards == [
        ["−log p(x), test set", "80.12 nats", "± 0.03, standard error", "paper 79.84 (+0.28)",
         "expected 80.50 (-0.38)"],
        ["ELBO, test set", "-84.33 nats"],
        ["Bits per dimension", "0.1474"],
        ["Layers in use", "2 of 2", "6.51 nats in all"],
        ["Parameters", "4,123,456"],
        ["Training time", "1 d 3 h"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("--config.training.num_epochs=2", ", without its overrides"),
        ("--config.sampling.num_images=9", ""),
        ("--config.dataset.data_dir=/data", ""),
        ("--config.training.sinks=csv", ""),
        ("--config.training.patience=3", ", without its overrides"),
        ("'unfinished", ""),
    ],
)
def test_what_is_expected_is_that_of_the_configuration_as_it_is(tmp_path, override, note):
    results = RESULTS | {"command": f"{RESULTS['command']} {override}"}
    config = {"paper": {"expected_nll": 80.5}}
    cards = Page(write_report(write_run(tmp_path, config, results))).cards
    assert cards[0][-1] == f"expected 80.50 (-0.38){note}"


@pytest.mark.parametrize(
    "evaluated", [{"split": "validation"}, {"evaluation": {"num_examples": 100}}]
)
def test_figures_of_other_images_are_not_compared_with_those_of_the_test_set(tmp_path, evaluated):
    config = {"paper": {"nll": 79.84, "expected_nll": 80.5}}
    cards = Page(write_report(write_run(tmp_path, config, RESULTS | evaluated))).cards
    assert cards[0][-2:] == ["paper 79.84", "expected 80.50"]


def test_before_the_evaluation_a_card_has_the_best_elbo_so_far(tmp_path):
    metrics = [{"step": i, "epoch": i, "split": "validation", "elbo": -v, "kl_per_layer": [0.05, v]}
               for i, v in enumerate((90.0, 85.0, 86.0))]  # fmt: skip
    page = Page(write_report(write_run(tmp_path, results=None, metrics=metrics)))
    assert page.cards == [["Best ELBO so far, validation", "-85.00 nats", "−log p(x): paper 79.84"]]
    assert page.charts == [
        "The ELBO of validation images is best after 1 epochs: -85.00 nats.",
        "Layer 2 carries 86.00 nats, the most, and layer 1 0.05 nats. All layers together carry "
        "86.05 nats; 1 of 2 carry at least 0.1 nats.",
    ]


def test_settings_that_differ_from_the_defaults_come_first(tmp_path):
    config = json.loads(json.dumps(digits.get_config().to_dict()))
    rows = Page(write_report(write_run(tmp_path, config))).rows
    changed = {key: value for key, value in rows.items() if "." in key and "All" not in key}
    assert changed["model.num_layers"] == "4 default 10"
    assert changed["training.warmup"] == "100 steps default 500 steps"
    assert changed.keys() == {
        path
        for path, value in flat(config).items()
        if value != flat(json.loads(json.dumps(defaults())))[path] and "paper" not in path
    }
    page = Page(write_report(write_run(tmp_path, json.loads(json.dumps(defaults())))))
    assert "All settings are at their defaults." in page.text


def flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (flat(v, f"{prefix}.{k}".strip(".")) for k, v in tree.items())
    return {path: value for part in parts for path, value in part.items()}


def test_hardware_versions_and_date_are_told_once_where_they_are_the_same(tmp_path):
    cpu = {"date": "2026-11-27", "cpu": "Model A", "cores": 2, "devices": ["cpu"],
           "versions": {"python": "3.11.4", "jax": "0.10.2"}}  # fmt: skip
    gpu = cpu | {"devices": ["NVIDIA H100"] * 4, "cores": 1}
    results = RESULTS | {"computer": cpu, "evaluation_computer": cpu}
    rows = Page(write_report(write_run(tmp_path, results=results))).rows
    assert rows["Hardware"] == "Model A, 2 cores" and rows["Date"] == "2026-11-27"
    assert rows["Versions"] == "python 3.11.4, jax 0.10.2"
    results = RESULTS | {"computer": gpu, "evaluation_computer": cpu}
    rows = Page(write_report(write_run(tmp_path, results=results))).rows
    assert rows["Hardware of the training"] == "4 × NVIDIA H100; Model A, 1 core"
    assert rows["Hardware of the evaluation"] == "Model A, 2 cores"
    results = RESULTS | {"computer": None, "evaluation_computer": cpu}  # of an older version
    rows = Page(write_report(write_run(tmp_path, results=results))).rows
    assert "Hardware of the training" not in rows and "Hardware of the evaluation" in rows


def test_hostile_strings_stay_text(tmp_path):
    workdir = tmp_path / "run <script>&"
    workdir.mkdir()
    config = {HOSTILE: HOSTILE, "nested": {HOSTILE: {HOSTILE: [HOSTILE]}}, "$title": "${results}"}
    results = {key: HOSTILE for key in RESULTS} | {HOSTILE: HOSTILE, "dict": {HOSTILE: 1}}
    save_png(workdir / "a<b>&\"'.png", 0)
    page = Page(write_report(write_run(workdir, config, results)))

    assert "script" not in page.tags
    assert [image["alt"] for image in page.images] == ["a<b>&\"'.png"]
    assert page.rows[HOSTILE] == HOSTILE
    assert page.rows[f"All settings.nested.{HOSTILE}.{HOSTILE}"] == HOSTILE
    assert page.rows["$title"] == "${results}"
    assert page.rows["Git commit of the training"] == HOSTILE
    assert HOSTILE in page.rows["Negative log-likelihood of the test set"]
    assert "SeRe-VAE: run <script>&" in page.text


def test_page_loads_nothing_from_elsewhere(tmp_path):
    save_png(tmp_path / "samples.png", 0)
    metrics = [{"step": i, "epoch": i, "split": "train", "elbo": -90.0} for i in range(9)]
    content = write_report(write_run(tmp_path, metrics=metrics)).read_text()
    assert content.count("<svg") == 2
    assert "http" not in content and "@import" not in content
    assert set(re.findall(r"url\((.)", content)) <= {"#"}, "parts of the page alone"
    assert Page(tmp_path / "report.html").tags.isdisjoint({"script", "link", "iframe"})
    assert 'name="viewport"' in content and "prefers-color-scheme: dark" in content


def test_new_report_replaces_the_old_one(tmp_path):
    write_report(write_run(tmp_path, results=None))
    page = Page(write_report(write_run(tmp_path)))
    assert "has not run" not in page.text
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".jsonl", ".html"}


def test_directories_that_hold_no_run_are_refused(tmp_path):
    for workdir in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="is not the directory of a run"):
            write_report(workdir)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ['{"seed": ', "[1, 2]"])
def test_unreadable_configuration_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        write_report(tmp_path)
