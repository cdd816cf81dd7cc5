"""RESULTS.md from runs with known figures."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments import results
from experiments.results import (
    cases_section,
    finished_runs,
    flows_section,
    likelihood_section,
    paired_gap,
    short_runs_section,
)

NUM_VALUES = 12


def keep_run(directory, bits, validation_bits=9.0, seed=0):
    """A kept run whose test images need `bits` bits/dim: halfway, by ELBO, importance-weighted."""
    directory.mkdir(parents=True)
    halfway, elbo, log_likelihood = (
        -NUM_VALUES * math.log(2) * np.random.default_rng(seed).normal(mean, 0.5, 1000)
        for mean in bits
    )
    np.savez(directory / "test_elbo_50.npz", elbo=halfway)
    np.savez(directory / "test_images.npz", elbo=elbo, log_likelihood=log_likelihood)
    fields = {"step": 100, "num_importance_samples": 5, "num_params": 1234, "train_seconds": 600.0}
    fields["kl_per_layer"] = [5.0, 0.2, 0.01]
    (directory / "results.json").write_text(json.dumps(fields))
    (directory / "config.json").write_text('{"model": {"data_shape": [2, 2, 3]}}')
    records = [
        {"split": "test", "step": 50},
        {"split": "validation", "step": 50, "bits_per_dim": 9.9, "kl": 1.0, "elbo_stderr": 1.0},
        {"split": "validation", "bits_per_dim": validation_bits, "kl": 7.0, "elbo_stderr": 0.1},
    ]
    lines = [json.dumps({"step": 100, "epoch": 1.0} | record) for record in records]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")


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

    text = "\n".join(cases_section(tmp_path))

    assert "| case1 | not run |" in text
    assert "case1 - case2" not in text
    # The same noise in both: the gaps are exact.
    row = next(line for line in text.split("\n") if line.startswith("| case2 - case3"))
    for value in (0.5, 1.0, 1.1):
        assert f"{value:.3f} ± 0.000 (seeds: {value:.3f}, {value:.3f})" in row
    assert "| 100 |" in text and "1,234" in text and "(K = 5) | 2 of 3 | 1,234 | 10 |" in text


def test_without_elbos_after_half_these_are_left_out(tmp_path):
    for name in ("case2_seed0", "case3_seed0"):
        keep_run(tmp_path / name, (7.0, 6.0, 5.9))
    (tmp_path / "case2_seed0" / "test_elbo_50.npz").unlink()

    lines = cases_section(tmp_path)

    (first,) = (line for line in lines if line.startswith("| [case2_seed0"))
    (other,) = (line for line in lines if line.startswith("| [case3_seed0"))
    assert "| 100 |  | " in first and "| 100 |  | " not in other
    assert any(line.startswith("| case2 - case3 |  | 0.000") for line in lines)


def test_short_runs_are_sorted_by_their_last_validation(tmp_path):
    keep_run(tmp_path / "tiles", (7.0, 6.0, 5.9), validation_bits=6.5)
    keep_run(tmp_path / "context4", (7.0, 6.0, 5.9), validation_bits=5.25)

    lines = short_runs_section(tmp_path)

    assert "context4" in lines[-2] and "tiles" in lines[-1]
    error = 0.1 / (NUM_VALUES * math.log(2))
    assert f"| 5.2500 ± {error:.4f} | 7 |" in lines[-2]


def test_gaps_are_those_of_the_seeds_that_both_systems_have(tmp_path):
    for name, bits in (("case1_seed0", 6.0), ("case2_seed0", 5.5), ("case2_seed1", 9.0)):
        keep_run(tmp_path / name, (bits, bits, bits))

    row = next(line for line in cases_section(tmp_path) if line.startswith("| case1 - case2"))

    assert "0.500 ± 0.000 (seeds: 0.500)" in row


def test_flows_are_listed_best_first_and_bounds_apart_from_exact_values(tmp_path):
    for name, elbo, latent_shape in (("maf10", 2500.0, [0]), ("sere_maf", 3000.0, [40])):
        keep_run(tmp_path / name, (7.0, 6.0, 5.9))
        config = {"model": {"data_shape": [2, 2, 3], "latent_shape": latent_shape}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        fields = json.loads((tmp_path / name / "results.json").read_text())
        fields |= {"elbo": elbo, "elbo_stderr": 1.5, "nll": -elbo - 20, "nll_stderr": 1.25}
        fields |= {"elbo_bits_per_dim": 4.5, "epoch": 12.0}
        (tmp_path / name / "results.json").write_text(json.dumps(fields))

    not_run, first, second = flows_section(tmp_path)[-3:]

    assert not_run.startswith("| maf5 | not run |")
    assert "| 3000.0 ± 1.5 | 3020.0 ± 1.2 (K = 5) | 4.5000 | 2 of 3 |" in first
    assert "| 2500.0 ± 1.5 |  | 4.5000 |  | 1,234 |" in second


def test_runs_on_mnist_are_listed_best_first_and_missing_ones_named(tmp_path):
    for name, nll, paper_nll in (("worse", 84.25, 83.0), ("better", 81.5, None)):
        keep_run(tmp_path / name, (7.0, 6.0, 5.9))
        fields = json.loads((tmp_path / name / "results.json").read_text())
        fields |= {"nll": nll, "nll_stderr": 0.25, "elbo": -90.0, "elbo_stderr": 0.5, "epoch": 60.0}
        fields |= {"paper_nll": paper_nll, "git_commit": "0123456789"}
        (tmp_path / name / "results.json").write_text(json.dumps(fields))
    expected = {"better": ("a.py", 81.0), "missing": ("b.py:c", 79.5)}

    first, second, missing = likelihood_section("Heading", [], tmp_path, expected)[-3:]

    cells = "| 81.50 ± 0.25 |  | -90.00 ± 0.50 | 2 of 3 | 1,234 | 60 | 10 | `0123456` |"
    assert first.startswith("| [better](") and first.endswith(cells)
    assert second.startswith("| [worse](") and "| 84.25 ± 0.25 | 83.00 |" in second
    assert missing.startswith("| missing: `b.py:c` | not run | 79.50 |")


def test_runs_on_mnist_are_compared_image_by_image(tmp_path):
    for name, bits in (("sere_vae", 6.0), ("other", 6.5)):
        keep_run(tmp_path / name, (7.0, 6.0, bits), seed=len(name))
        fields = json.loads((tmp_path / name / "results.json").read_text())
        fields |= {"nll": bits, "nll_stderr": 0.25, "elbo": -90.0, "elbo_stderr": 0.5}
        fields |= {"epoch": 60.0, "paper_nll": None, "git_commit": "0123456789"}
        (tmp_path / name / "results.json").write_text(json.dumps(fields))
    ours, theirs = (
        np.load(tmp_path / name / "test_images.npz")["log_likelihood"]
        for name in ("other", "sere_vae")
    )
    paired = stats.ttest_rel(theirs, ours).confidence_interval(0.6827)
    error = (paired.high - paired.low) / 2

    expected = {"missing": ("a.py", 81.0)}
    lines = likelihood_section("Heading", [], tmp_path, expected, reference="sere_vae")

    header, _, reference, other, missing = lines[-5:]
    cells = [[cell.strip() for cell in line.split("|")] for line in (header, reference, other)]
    column = cells[0].index("difference to sere_vae")
    assert cells[1][column] == ""
    assert cells[2][column] == f"{(theirs - ours).mean():+.2f} ± {error:.2f}"
    assert header.count("|") == reference.count("|") == missing.count("|")


def test_systems_and_options_have_a_table_each(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS_DIRECTORY", tmp_path)
    for name, nll in (("sere_vae", 83.0), ("iaf", 84.5), ("context2", 82.25), ("of_ours", 80.0)):
        run = tmp_path / "mnist_comparison" / name
        keep_run(run, (7.0, 6.0, nll), seed=0)
        fields = json.loads((run / "results.json").read_text())
        fields |= {"nll": nll, "nll_stderr": 0.25, "elbo": -90.0, "elbo_stderr": 0.5}
        (run / "results.json").write_text(json.dumps(fields | {"paper_nll": None, "epoch": 60.0}))

    _, systems, options = results.mnist_tables().split("\n\n")

    in_nats = NUM_VALUES * math.log(2)  # the same noise in all: the differences are exact
    (_, _, first, second), (_, _, option) = (
        table.strip().split("\n") for table in (systems, options)
    )
    assert first.startswith("| [sere_vae](") and "| 83.00 ± 0.25 |" in first
    assert second.startswith("| [iaf](") and f"| {1.5 * in_nats:+.2f} ± 0.00 | 1,234 |" in second
    assert (
        option.startswith("| [context2](") and "| all layers see the two previous codes |" in option
    )
    assert f"| 82.25 ± 0.25 | {-0.75 * in_nats:+.2f} ± 0.00 |" in option


def test_unfinished_runs_do_not_count(tmp_path):
    keep_run(tmp_path / "case1_seed0", (7.0, 6.0, 5.9))
    (tmp_path / "case1_seed0" / "results.json").unlink()
    assert finished_runs(tmp_path) == {}
    assert finished_runs(tmp_path / "nothing") == {}


def test_the_page_is_that_of_the_kept_runs():
    """RESULTS.md is not typed in by hand, nor are the README's tables."""
    assert results.page() == results.PAGE.read_text()
    readme = results.README.read_text()
    assert results.mnist_tables() in readme
    assert results.with_tables(readme, results.mnist_tables()) == readme


def test_tables_take_the_place_of_those_before():
    readme = f"above\n{results.TABLES_START}\nold\n{results.TABLES_END}below\n"
    expected = f"above\n{results.TABLES_START}\nnew\n\n{results.TABLES_END}below\n"
    assert results.with_tables(readme, "new\n") == expected
    for lost in (results.TABLES_START, results.TABLES_END):
        with pytest.raises(ValueError, match="needs the lines"):
            results.with_tables(readme.replace(lost, ""), "new\n")
