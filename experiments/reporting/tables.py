"""Tables of kept runs in Markdown, lists of lines."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reporting.kept_runs import Run, paired_gap
from experiments.training.evaluation import standard_error

CASES = ("case1", "case2", "case3")
FLOWS = ("sere_maf", "maf10", "maf5")
LIKELIHOOD_COLUMNS = ("-log p(x), nats", "the paper", "ELBO, nats")
_Measure = Callable[[Run], np.ndarray]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; rows that are too short end with empty cells."""
    padded = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return head + [f"| {' | '.join(cells)} |" for cells in padded]


def likelihood_table(
    runs: Mapping[str, Run],
    expected: Mapping[str, tuple[str, float | None]],
    reference: str | None = None,
    descriptions: Mapping[str, str] | None = None,
) -> list[str]:
    """Runs by the likelihood of the evaluated images in nats, best first.

    Args:
        runs: by their names.
        expected: the configuration and the paper's figure of the runs that there should be; those
            that are missing are named. There may be others.
        reference: the run that a column compares the others with, image by image.
        descriptions: what a column says of some of the runs.
    """

    def what(name: str) -> list[str]:
        return [descriptions.get(name, "")] if descriptions else []

    compared = [f"difference to {reference}"] if reference else []
    columns = ["run", *(["what"] if descriptions else []), *LIKELIHOOD_COLUMNS, *compared]
    columns += ["with", "layers in use", "parameters", "epochs", "minutes", "commit", "kept as"]
    rows = []
    for run in best_first(runs):
        results = run.results
        row = [
            run.link,
            *what(run.directory.name),
            *likelihood_cells(results),
            *([difference(run, runs.get(reference))] if reference else []),
            run.options_in_use,
            run.layers_in_use,
            f"{results['num_params']:,}",
            f"{results['epoch']:.0f}",
            _minutes(run),
            f"`{results['git_commit'][:7]}`",
            run.kind,
        ]
        rows.append(row)
    for name, (configuration, paper_nll) in expected.items():
        if name not in runs:
            row = [f"{name}: `{configuration}`", *what(name), "not run", figure_of_paper(paper_nll)]
            rows.append(row)
    return table(columns, rows)


def best_first(runs: Mapping[str, Run]) -> list[Run]:
    """Runs by their -log p(x)."""
    return sorted(runs.values(), key=lambda run: run.results["nll"])


def likelihood_cells(results: Mapping[str, Any]) -> tuple[str, str, str]:
    """Cells of `LIKELIHOOD_COLUMNS`."""
    return (
        f"{results['nll']:.2f} ± {results['nll_stderr']:.2f}",
        figure_of_paper(results["paper_nll"]),
        f"{results['elbo']:.2f} ± {results['elbo_stderr']:.2f}",
    )


def difference(run: Run, reference: Run | None) -> str:
    """-log p(x) of a run less that of another, in nats, with the paired error."""
    if reference is None or run.directory == reference.directory:
        return ""
    values = reference.log_likelihood() - run.log_likelihood()
    return f"{values.mean():+.2f} ± {standard_error(values):.2f}"


def spread_over_seeds(runs: Mapping[str, Run], name: str) -> list[list[str]]:
    """A sentence on the runs NAME, NAME_seed1, NAME_seed2, ...; nothing if there is but one."""
    values = [run.results["nll"] for run in _by_seed(runs, name).values()]
    if len(values) < 2:
        return []
    sentence = (
        f"Over {len(values)} seeds -log p(x) of `{name}` is {np.mean(values):.2f} nats with a "
        f"standard deviation of {np.std(values, ddof=1):.2f}; other rows have one seed."
    )
    return [[sentence]]


def _by_seed(runs: Mapping[str, Run], name: str) -> dict[int, Run]:
    """The runs NAME, of seed 0, and NAME_seedN."""
    matches = ((re.fullmatch(rf"{name}(?:_seed(\d+))?", key), run) for key, run in runs.items())
    return {int(match[1] or 0): run for match, run in matches if match}


def cases_tables(runs: Mapping[str, Run]) -> list[str]:
    """The paper's ablation of the couplings, from the runs CASE_seedN: figures, then gaps."""
    by_case = {case: _by_seed(runs, case) for case in CASES}
    rows = []
    for case in CASES:
        rows += [_case_cells(run) for run in by_case[case].values()] or [[case, "not run"]]
    columns = ["run", "updates", "ELBO after half", "ELBO", "importance-weighted"]
    columns += ["layers in use", "above 1 nat", "parameters", "minutes", "kept as"]
    gaps = [
        [f"{before} - {after}", *_gap_cells(by_case[before], by_case[after], seeds)]
        for before, after in itertools.pairwise(CASES)
        if (seeds := sorted(by_case[before].keys() & by_case[after].keys()))
    ]
    lines = table(columns, rows)
    if gaps:
        lines += [
            "",
            "Gaps, mean over seeds ± standard error over the test images, paired:",
            "",
            *table(["gap", "ELBO after half", "ELBO", "importance-weighted"], gaps),
        ]
    return lines


def _case_cells(run: Run) -> list[str]:
    results = run.results
    return [
        run.link,
        f"{results['step']:,}",
        _mean_and_error(_elbo_after_half(run)) if run.tested_steps() else "",
        _mean_and_error(_elbo(run)),
        f"{_mean_and_error(_importance_weighted(run))} (K = {results['num_importance_samples']})",
        run.layers_in_use,
        str(run.layers_above(1.0)),
        f"{results['num_params']:,}",
        _minutes(run),
        run.kind,
    ]


def stand_ins_table(runs: Mapping[str, Run], descriptions: Mapping[str, str]) -> list[str]:
    """The runs VARIANT_seedN, a row each variant, in the order of what is said of them."""
    rows = []
    for variant, what in descriptions.items():
        seeds = list(_by_seed(runs, variant).values())
        if not seeds:
            rows.append([f"`{variant}`", what, "not run"])
            continue
        bits, errors = zip(*(run.held_out_bits_per_dim() for run in seeds), strict=True)
        row = [
            f"`{variant}`",
            what,
            ", ".join(f"{value:.3f}" for value in bits),
            f"{max(errors):.3f}",
            ", ".join(run.layers_in_use for run in seeds),
            ", ".join(str(run.layers_above(1.0)) for run in seeds),
            ", ".join(f"{sum(run.results['kl_per_layer']):.1f}" for run in seeds),
            f"{seeds[0].results['num_params']:,}",
        ]
        rows.append(row)
    columns = ["variant", "what differs", "bits/dim of each seed", "± over images"]
    columns += ["layers in use", "above 1 nat", "KL, nats", "parameters"]
    return table(columns, rows)


def _gap_cells(
    before: Mapping[int, Run], after: Mapping[int, Run], seeds: Sequence[int]
) -> list[str]:
    pair = [[runs[seed] for seed in seeds] for runs in (before, after)]
    has_half = all(run.tested_steps() for runs in pair for run in runs)

    def gap(measure: _Measure) -> str:
        return str(paired_gap(*(map(measure, runs) for runs in pair)))

    return [gap(_elbo_after_half) if has_half else "", gap(_elbo), gap(_importance_weighted)]


def _elbo_after_half(run: Run) -> np.ndarray:
    return run.bits_per_dim("elbo", run.tested_steps()[0])


def _elbo(run: Run) -> np.ndarray:
    return run.bits_per_dim("elbo")


def _importance_weighted(run: Run) -> np.ndarray:
    return run.bits_per_dim("log_likelihood")


def flows_table(runs: Mapping[str, Run]) -> list[str]:
    """SeRe-MAF beside plain flows, best first."""
    rows = [[name, "not run"] for name in FLOWS if name not in runs]
    for run in sorted(runs.values(), key=lambda run: -run.results["elbo"]):
        results = run.results
        is_exact = run.config["model"]["latent_shape"] == [0]
        importance_weighted = f"{-results['nll']:.1f} ± {results['nll_stderr']:.1f}"
        row = [
            run.link,
            f"{results['elbo']:.1f} ± {results['elbo_stderr']:.1f}",
            "" if is_exact else f"{importance_weighted} (K = {results['num_importance_samples']})",
            f"{results['elbo_bits_per_dim']:.4f}",
            "" if is_exact else run.layers_in_use,
            f"{results['num_params']:,}",
            f"{results['epoch']:.1f}",
            _minutes(run),
            run.kind,
        ]
        rows.append(row)
    columns = ["run", "log-likelihood or ELBO, nats", "importance-weighted, nats", "bits/dim"]
    columns += ["layers in use", "parameters", "epochs", "minutes", "kept as"]
    return table(columns, rows)


def _minutes(run: Run) -> str:
    return f"{run.results['train_seconds'] / 60:.0f}"


def figure_of_paper(nll: float | None) -> str:
    """Of a table; empty if the paper has none."""
    return "" if nll is None else f"{nll:.2f}"


def _mean_and_error(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {standard_error(values):.4f}"
