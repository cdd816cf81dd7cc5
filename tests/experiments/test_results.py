"""RESULTS.md from runs with known figures."""

import gzip
import json
import math

import numpy as np
import pytest
from scipy import stats

from configs.mnist_comparison import SYSTEMS
from experiments import results
from experiments.reporting.kept_runs import finished_runs, paired_gap
from experiments.reporting.tables import (
    cases_tables,
    flows_table,
    likelihood_table,
    spread_over_seeds,
    stand_ins_table,
)
from experiments.run_folder.metrics import read_metrics
from experiments.system.errors import UserError

NUM_VALUES = 12


def keep_run(directory, bits, seed=0, **fields):
    """A kept run whose test images need `bits` bits/dim: halfway, by ELBO, importance-weighted."""
    directory.mkdir(parents=True)
    halfway, elbo, log_likelihood = (
        -NUM_VALUES * math.log(2) * np.random.default_rng(seed).normal(mean, 0.5, 1000)
        for mean in bits
    )
    np.savez(directory / "test_elbo_50.npz", elbo=halfway)
    np.savez(directory / "test_images.npz", elbo=elbo, log_likelihood=log_likelihood)
    always = {"step": 100, "num_importance_samples": 5, "num_params": 1234, "train_seconds": 600.0}
    always |= {"kl_per_layer": [5.0, 0.2, 0.01], "epoch": 60.0, "git_commit": "0123456789"}
    always |= {"nll_stderr": 0.25, "elbo": -90.0, "elbo_stderr": 0.5, "paper_nll": None}
    fields = always | fields
    (directory / "results.json").write_text(json.dumps(fields))
    (directory / "config.json").write_text('{"model": {"data_shape": [2, 2, 3]}}')
    line = json.dumps({"step": 100, "epoch": 1.0, "split": "validation", "elbo": -91.0}) + "\n"
    (directory / "metrics.jsonl.gz").write_bytes(gzip.compress(line.encode()))


def test_a_paired_gap_has_the_error_of_a_paired_test():
    rng = np.random.default_rng(0)
    images = rng.normal(5.0, 1.0, 400)
    first = [images + rng.normal(0.3, 0.1, 400) for _ in range(2)]
    second = [images + rng.normal(0.0, 0.1, 400) for _ in range(2)]

    gap = paired_gap(first, second)

    test = stats.ttest_rel(np.mean(first, axis=0), np.mean(second, axis=0))
    assert gap.mean / gap.image_error == pytest.approx(test.statistic)
    assert gap.per_seed == pytest.approx(np.mean(np.subtract(first, second), axis=1))


def test_a_gap_of_systems_with_other_numbers_of_seeds_is_refused():
    with pytest.raises(ValueError, match="zip"):
        paired_gap([np.ones(3)], [np.ones(3), np.ones(3)])


def test_cases_are_compared_at_half_and_at_the_end(tmp_path):
    for seed in (0, 1):
        keep_run(tmp_path / f"case2_seed{seed}", (7.0, 6.0, 5.9), seed=seed)
        keep_run(tmp_path / f"case3_seed{seed}", (6.5, 5.0, 4.8), seed=seed)

    text = "\n".join(cases_tables(finished_runs(tmp_path)))

    assert "| case1 | not run |" in text
    assert "case1 - case2" not in text
    # The same noise in both: the gaps are exact.
    row = next(line for line in text.split("\n") if line.startswith("| case2 - case3"))
    for value in (0.5, 1.0, 1.1):
        assert f"{value:.3f} ± 0.000 (seeds: {value:.3f}, {value:.3f})" in row
    assert "| 100 |" in text and "(K = 5) | 2 of 3 | 1 | 1,234 | 10 | record |" in text


def test_without_elbos_after_half_these_are_left_out(tmp_path):
    for name in ("case2_seed0", "case3_seed0"):
        keep_run(tmp_path / name, (7.0, 6.0, 5.9))
    (tmp_path / "case2_seed0" / "test_elbo_50.npz").unlink()

    lines = cases_tables(finished_runs(tmp_path))

    (first,) = (line for line in lines if line.startswith("| [case2_seed0"))
    (other,) = (line for line in lines if line.startswith("| [case3_seed0"))
    assert "| 100 |  | " in first and "| 100 |  | " not in other
    assert any(line.startswith("| case2 - case3 |  | 0.000") for line in lines)


def test_gaps_are_those_of_the_seeds_that_both_systems_have(tmp_path):
    for name, bits in (("case1_seed0", 6.0), ("case2_seed0", 5.5), ("case2_seed1", 9.0)):
        keep_run(tmp_path / name, (bits, bits, bits))

    row = next(
        line for line in cases_tables(finished_runs(tmp_path)) if line.startswith("| case1 - case2")
    )

    assert "0.500 ± 0.000 (seeds: 0.500)" in row


def test_stand_ins_are_listed_as_they_are_described_with_all_of_their_seeds(tmp_path):
    for name, elbo in (("hilbert_seed0", -40.0), ("hilbert_seed1", -42.0), ("local_seed0", -50.0)):
        keep_run(tmp_path / name, (7.0, 6.0, 5.9))
        records = [
            {"step": 50, "split": "validation", "elbo": -90.0, "elbo_stderr": 9.0},
            {"step": 100, "split": "validation", "elbo": elbo, "elbo_stderr": 2.0},
            {"step": 100, "split": "train", "elbo": -10.0},
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / name / "metrics.jsonl.gz").write_bytes(gzip.compress(lines.encode()))

    described = {"state": "a state", "local": "near blocks", "hilbert": "a curve"}
    rows = stand_ins_table(finished_runs(tmp_path), described)[2:]

    # 12 values an image: 50 nats are 50 / (12 ln 2) bits/dim.
    assert rows[0].startswith("| `state` | a state | not run |")
    assert "| `local` | near blocks | 6.011 | 0.240 | 2 of 3 | 1 | " in rows[1]
    assert "| `hilbert` | a curve | 4.809, 5.049 | 0.240 | 2 of 3, 2 of 3 | 1, 1 | " in rows[2]


def test_flows_are_listed_best_first_and_bounds_apart_from_exact_values(tmp_path):
    for name, elbo, latent_shape in (("maf10", 2500.0, [0]), ("sere_maf", 3000.0, [40])):
        fields = {"elbo": elbo, "elbo_stderr": 1.5, "nll": -elbo - 20, "nll_stderr": 1.25}
        fields |= {"elbo_bits_per_dim": 4.5, "epoch": 12.0}
        keep_run(tmp_path / name, (7.0, 6.0, 5.9), **fields)
        config = {"model": {"data_shape": [2, 2, 3], "latent_shape": latent_shape}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))

    not_run, first, second = flows_table(finished_runs(tmp_path))[-3:]

    assert not_run.startswith("| maf5 | not run |")
    assert "| 3000.0 ± 1.5 | 3020.0 ± 1.2 (K = 5) | 4.5000 | 2 of 3 |" in first
    assert "| 2500.0 ± 1.5 |  | 4.5000 |  | 1,234 |" in second


def test_runs_on_mnist_are_listed_best_first_and_missing_ones_named(tmp_path):
    for name, nll, paper_nll in (("worse", 84.25, 83.0), ("better", 81.5, None)):
        keep_run(tmp_path / name, (7.0, 6.0, 5.9), nll=nll, paper_nll=paper_nll)
    (tmp_path / "better" / "weights.npz").touch()
    expected = {"better": ("a.py", 81.0), "missing": ("b.py:c", 79.5)}

    first, second, missing = likelihood_table(finished_runs(tmp_path), expected)[-3:]

    cells = "| 81.50 ± 0.25 |  | -90.00 ± 0.50 |  | 2 of 3 | 1,234 | 60 | 10 | `0123456` |"
    assert first.startswith("| [better](") and first.endswith(f"{cells} re-evaluable |")
    assert second.startswith("| [worse](") and "| 84.25 ± 0.25 | 83.00 |" in second
    assert second.endswith("| record |")
    assert missing.startswith("| missing: `b.py:c` | not run | 79.50 |")


def test_runs_on_mnist_are_compared_image_by_image(tmp_path):
    for name, bits in (("sere_vae", 6.0), ("other", 6.5)):
        keep_run(tmp_path / name, (7.0, 6.0, bits), seed=len(name), nll=bits)
    ours, theirs = (
        np.load(tmp_path / name / "test_images.npz")["log_likelihood"]
        for name in ("other", "sere_vae")
    )
    paired = stats.ttest_rel(theirs, ours).confidence_interval(0.6827)
    error = (paired.high - paired.low) / 2

    runs, expected = finished_runs(tmp_path), {"missing": ("a.py", 81.0)}
    described = {"other": "one option", "missing": "another"}
    lines = likelihood_table(runs, expected, reference="sere_vae", descriptions=described)

    header, _, reference, other, missing = lines[-5:]
    cells = [[cell.strip() for cell in line.split("|")] for line in (header, reference, other)]
    column = cells[0].index("difference to sere_vae")
    assert cells[1][column] == ""
    assert cells[2][column] == f"{(theirs - ours).mean():+.2f} ± {error:.2f}"
    assert cells[2][cells[0].index("what")] == "one option"
    assert missing.startswith("| missing: `a.py` | another | not run | 81.00 |")
    assert header.count("|") == reference.count("|") == missing.count("|")


def test_a_row_says_which_options_its_run_used(tmp_path):
    keep_run(tmp_path / "run", (7.0, 6.0, 5.9), nll=81.0)
    path = tmp_path / "run" / "config.json"
    (run,) = finished_runs(tmp_path).values()
    assert run.options_in_use == ""  # of a version that had none of these fields
    sections = {
        "model": {"data_shape": [2, 2, 3], "num_joint_layers": 1, "data_context": 4},
        "training": {
            "num_train_samples": 5,
            "importance_weighted_from": "85%",
            "weight_decay": 0.01,
            "max_update_rms": 0.3,
            "optimizer": "muon",
            "initial_weights": "runs/other",
        },
        "dataset": {"random_affine": 0.5, "random_affine_until": "90%"},
    }
    path.write_text(json.dumps(sections))
    (run,) = finished_runs(tmp_path).values()
    expected = (
        "weights of other at the start, IW-5 from 85%, affine maps of 50% until 90%, "
        "weight decay of 0.01, limited updates, Muon, "
        "previous blocks seen, 1 joint layer"
    )
    assert run.options_in_use == expected
    assert f"| {expected} | 2 of 3 |" in likelihood_table({"run": run}, {})[-1]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"partition": "checkerboard", "num_layers": 16}, "16 interleaved blocks"),
        ({"data_channels": 32}, "data layers convolutional"),
        ({"encoder": "shared", "context": 4}, "one encoder, 4 previous codes seen"),
        ({"latent_sizes": [20, 16]}, "unequal layers"),
        ({"latent_sizes": [10, 10]}, ""),
        ({"generative_dropout": 0.1}, "dropout of 10% in priors and data layers"),
        ({"block_dropout": 0.1}, "dropout of 10% of the previous blocks' pixels"),
        ({"state_size": 3, "prior": "spline"}, "a state of all codes, spline prior"),
        ({"carry_start": 0.9}, "codes handed on"),
        ({"carry_start": 0.9, "couple_bijector": False}, ""),
        ({"system": "ladder_vae", "latent_sizes": [64, 32]}, ""),
        (
            {"system": "relaxed_bernoulli_vae", "posterior_temperature": 1.0},
            "posterior temperature 1",
        ),
    ],
)
def test_a_row_says_where_its_model_is_not_the_paper_s(tmp_path, fields, expected):
    keep_run(tmp_path / "run", (7.0, 6.0, 5.9))
    path = tmp_path / "run" / "config.json"
    defaults = {"system": "sere_vae", "couple_bijector": True, "data_shape": [2, 2, 3]}
    path.write_text(json.dumps({"model": defaults | fields}))
    (run,) = finished_runs(tmp_path).values()
    assert run.options_in_use == expected


def test_the_spread_over_seeds_is_that_of_the_runs_of_one_system(tmp_path):
    for name, nll in (("ours", 81.0), ("ours_seed1", 81.5), ("ours_seed2", 81.2), ("other", 99.0)):
        keep_run(tmp_path / name, (7.0, 6.0, 5.9), nll=nll)
    runs = finished_runs(tmp_path)
    ((sentence,),) = spread_over_seeds(runs, "ours")
    assert "Over 3 seeds" in sentence and "81.23 nats" in sentence
    assert f"standard deviation of {np.std([81.0, 81.5, 81.2], ddof=1):.2f}" in sentence
    assert spread_over_seeds(runs, "other") == []


@pytest.mark.parametrize("others", [(), ("sere_vae", "dlgm"), set(SYSTEMS) - {"iaf"}])
def test_the_table_of_the_readme_has_the_systems_best_first(tmp_path, monkeypatch, others):
    monkeypatch.setattr(results, "RESULTS_DIRECTORY", tmp_path)
    folder = "mnist_comparison"
    for name in others:
        keep_run(tmp_path / folder / name, (7.0, 6.0, 90.0), nll=90.0)
    names = (f"{folder}/iaf", "mnist/mlp", f"{folder}/sere_vae_seed1", "mnist/of_ours")
    for name, nll in zip(names, (84.5, 81.0, 82.25, 80.0), strict=True):
        keep_run(tmp_path / name, (7.0, 6.0, nll), nll=nll, paper_nll=83.04)
    (tmp_path / "mnist/mlp" / "weights.npz").touch()
    config = {"model": {"data_shape": [2, 2, 3]}, "training": {"num_train_samples": 5}}
    (tmp_path / "mnist/mlp" / "config.json").write_text(json.dumps(config))

    _, _, *rows = results.readme_table().strip().split("\n")

    assert len(rows) == 2 + len(others)
    rows = rows[:2]
    assert [row.partition("](")[0] for row in rows] == [
        "| [SeRe-VAE",
        "| [IAF, in generation and inference",
    ]
    assert rows[0].endswith("/mnist/mlp) | 60 | IW-5 | 81.00 ± 0.25 | 83.04 | re-evaluable |")
    assert rows[1].endswith(f"/{folder}/iaf) | 60 |  | 84.50 ± 0.25 | 83.04 | record |")


@pytest.mark.parametrize("name", ["git_commit", "evaluation_git_commit"])
def test_runs_of_changed_files_are_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(results, "RESULTS_DIRECTORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    keep_run(tmp_path / "mnist" / "mine", (7.0, 6.0, 5.9), **{name: "0123456789-dirty"})

    message = f"mine/results.json has {name}=0123456789-dirty: .*commit the files and run it again"
    with pytest.raises(UserError, match=message):
        results.page()
    with pytest.raises(SystemExit, match="2"):
        results.main()

    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


def test_the_log_of_a_kept_run_is_compressed_that_of_a_live_one_is_not(tmp_path):
    keep_run(tmp_path / "run", (7.0, 6.0, 5.9))
    (kept,) = finished_runs(tmp_path)["run"].metrics
    assert kept == {"step": 100, "epoch": 1.0, "split": "validation", "elbo": -91.0}

    live = kept | {"elbo": -90.0}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(live) + "\n")
    assert read_metrics(tmp_path / "run") == [live]


def test_unfinished_runs_do_not_count(tmp_path):
    keep_run(tmp_path / "case1_seed0", (7.0, 6.0, 5.9))
    (tmp_path / "case1_seed0" / "results.json").unlink()
    assert finished_runs(tmp_path) == {}
    assert finished_runs(tmp_path / "nothing") == {}


def test_the_page_is_that_of_the_kept_runs():
    """RESULTS.md is not typed in by hand, nor is the README's table."""
    assert results.page() == results.PAGE.read_text()
    readme = results.README.read_text()
    assert f"{results.TABLE_START}\n{results.readme_table()}\n{results.TABLE_END}" in readme


def test_the_table_takes_the_place_of_the_one_before():
    readme = f"above\n{results.TABLE_START}\nold\n{results.TABLE_END}below\n"
    expected = f"above\n{results.TABLE_START}\nnew\n\n{results.TABLE_END}below\n"
    assert results.with_table(readme, "new\n") == expected
    assert results.with_table("without a table\n", "new\n") == "without a table\n"
    for lost in (results.TABLE_START, results.TABLE_END):
        with pytest.raises(UserError, match="needs the lines"):
            results.with_table(readme.replace(lost, ""), "new\n")
