"""Writes RESULTS.md, and the README's tables, from the finished runs that are kept in results/.

    python -m experiments.results

and draws the learning curves of the compared systems in one figure. A kept run is a workdir without
its checkpoints: `config.json`, `results.json`, `metrics.jsonl`, figures, and `test_*.npz` where
runs are compared image by image.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from configs import mnist_comparison, mnist_mlp, mnist_resnet
from experiments.reporting import figures
from experiments.run_folder import RESULTS_FILE
from experiments.run_folder.configuration import CONFIG_FILE
from experiments.run_folder.metrics import read_metrics
from experiments.system import console
from experiments.system.files import open_atomically
from experiments.training.evaluation import standard_error

RESULTS_DIRECTORY = pathlib.Path("results")
PAGE = pathlib.Path("RESULTS.md")
README = pathlib.Path("README.md")
TABLES_START = "<!-- written by python -m experiments.results -->\n"
TABLES_END = "<!-- end of what it writes -->\n"

CASES = ("case1", "case2", "case3")
FLOWS = ("sere_maf", "maf10", "maf5")
LONG_MNIST_RUNS = {
    "mlp": ("mnist_best.py", mnist_mlp.PAPER_NLL[""]),
    "all_blocks": ("mnist_best.py:all_blocks", None),
    "resnet": ("mnist_resnet.py", mnist_resnet.PAPER_NLL[""]),
}
MNIST_LEARNING_CURVES = pathlib.Path("docs/mnist_learning_curves.png")
LIKELIHOOD_COLUMNS = ("-log p(x), nats", "the paper", "ELBO, nats")
RUN_FILES = (CONFIG_FILE, RESULTS_FILE)
LEAST_KL = 0.1  # nats of a layer whose codes say something of the image


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: pathlib.Path

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """The run's configuration."""
        return json.loads((self.directory / CONFIG_FILE).read_bytes())

    @functools.cached_property
    def results(self) -> Mapping[str, Any]:
        """Its `results.json`."""
        return json.loads((self.directory / RESULTS_FILE).read_bytes())

    @functools.cached_property
    def metrics(self) -> Sequence[Mapping[str, Any]]:
        """The log."""
        return read_metrics(self.directory)

    @property
    def num_values(self) -> int:
        """D, values of an image."""
        return math.prod(self.config["model"]["data_shape"])

    @property
    def layers_in_use(self) -> str:
        """How many layers have a KL of at least `LEAST_KL`, of how many."""
        kl = self.results["kl_per_layer"]
        return f"{sum(value >= LEAST_KL for value in kl)} of {len(kl)}"

    @property
    def link(self) -> str:
        """Its name, as a link to its directory."""
        return f"[{self.directory.name}]({self.directory.as_posix()})"

    def bits_per_dim(self, name: str, step: int | None = None) -> np.ndarray:
        """Bits/dim of each test image [num] by its `elbo` or `log_likelihood`.

        Args:
            name: which of the two.
            step: of an ELBO logged during training; None: of the final evaluation.
        """
        file = "test_images.npz" if step is None else f"test_elbo_{step}.npz"
        values = np.load(self.directory / file)[name].astype(np.float64)
        return -values / (self.num_values * math.log(2))

    def log_likelihood(self) -> np.ndarray:
        """Importance-weighted log p(x) of each test image, in nats, [num]."""
        return np.load(self.directory / "test_images.npz")["log_likelihood"].astype(np.float64)

    def tested_steps(self) -> list[int]:
        """Steps during training of which the test images' ELBOs are kept, in order."""
        files = self.directory.glob("test_elbo_*.npz")
        steps = sorted(int(file.stem.removeprefix("test_elbo_")) for file in files)
        return [step for step in steps if step < self.results["step"]]


def finished_runs(directory: pathlib.Path) -> dict[str, Run]:
    """The runs kept in a folder by their names, sorted."""
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    return {
        path.name: Run(path) for path in paths if all((path / name).exists() for name in RUN_FILES)
    }


@dataclasses.dataclass(frozen=True)
class Gap:
    """How much fewer bits/dim the second of two systems needs."""

    mean: float
    image_error: float  # standard error over test images, paired
    per_seed: tuple[float, ...]

    def __str__(self) -> str:
        seeds = ", ".join(f"{value:.3f}" for value in self.per_seed)
        return f"{self.mean:.3f} ± {self.image_error:.3f} (seeds: {seeds})"


def paired_gap(first: Iterable[np.ndarray], second: Iterable[np.ndarray]) -> Gap:
    """The gap between two systems on the same images.

    Args:
        first: bits/dim of each image [num], of each seed.
        second: the same of the other system.
    """
    differences = np.stack(
        [one - other for one, other in zip(first, second, strict=True)]
    )  # [seeds, num]
    return Gap(
        mean=float(differences.mean()),
        image_error=standard_error(differences.mean(axis=0)),
        per_seed=tuple(float(value) for value in differences.mean(axis=1)),
    )


def cases_section(directory: pathlib.Path) -> list[str]:
    """The paper's ablation of the couplings, from the runs CASE_seedN."""
    runs = finished_runs(directory)
    by_case = {
        case: {
            name.removeprefix(case): run
            for name, run in runs.items()
            if name.startswith(f"{case}_")
        }
        for case in CASES
    }
    lines = [
        "## Couplings: cases 1, 2 and 3 (paper, section 4.2.1)",
        "",
        "`configs/cifar_cases.py` on `cifar10_jpeg` (CIFAR-10's images after lossy JPEG encoding:",
        "figures compare among themselves, not with published ones), all 10,000 test images,",
        "averaged weights. The data set is a local one in the format of TFDS; `cifar10` takes its",
        "place in the commands. Equal time: as many updates as take 45 minutes on one idle core,",
        "so on two cores for both seeds of a case. (Minutes in the table: other work ran beside",
        "them.) Bits/dim, fewer are better. Where the figures are from:",
        f"[{directory.name}]({directory.as_posix()}/README.md).",
        "",
        "| run | updates | ELBO after half | ELBO | importance-weighted | layers in use "
        "| parameters | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        if not by_case[case]:
            lines.append(f"| {case} | not run | | | | | | |")
        for run in by_case[case].values():
            results = run.results
            cells = [
                run.link,
                f"{results['step']:,}",
                _mean_and_error(_elbo_after_half(run)) if run.tested_steps() else "",
                _mean_and_error(_elbo(run)),
                f"{_mean_and_error(_importance_weighted(run))} "
                f"(K = {results['num_importance_samples']})",
                run.layers_in_use,
                f"{results['num_params']:,}",
                f"{results['train_seconds'] / 60:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    gaps = [
        (before, after, seeds)
        for before, after in itertools.pairwise(CASES)
        if (seeds := sorted(by_case[before].keys() & by_case[after].keys()))
    ]
    if gaps:
        lines += [
            "",
            "Gaps, mean over seeds ± standard error over the test images, paired:",
            "",
            "| gap | ELBO after half | ELBO | importance-weighted |",
            "|---|---|---|---|",
        ]
    for before, after, seeds in gaps:
        pair = [[by_case[case][seed] for seed in seeds] for case in (before, after)]
        has_half = all(run.tested_steps() for runs in pair for run in runs)
        cells = [
            str(paired_gap(*(map(measure, runs) for runs in pair))) if is_known else ""
            for measure, is_known in (
                (_elbo_after_half, has_half),
                (_elbo, True),
                (_importance_weighted, True),
            )
        ]
        lines.append(f"| {before} - {after} | {' | '.join(cells)} |")
    return lines


def _elbo_after_half(run):
    return run.bits_per_dim("elbo", run.tested_steps()[0])


def _elbo(run):
    return run.bits_per_dim("elbo")


def _importance_weighted(run):
    return run.bits_per_dim("log_likelihood")


def short_runs_section(directory: pathlib.Path) -> list[str]:
    """Partitions and receptive fields at a small equal budget, by validation images."""
    lines = [
        "## Partitions and receptive fields",
        "",
        "`configs/cifar_short.py` on `cifar10_jpeg`, equal numbers of updates: ELBO of held-out",
        "training images in bits/dim, best first. They chose the default partition and `:best`.",
        "They are older than `carry_start`, `residual_scale_start` and the present start of",
        "mixtures of logistics: the configurations as they are now give other figures. They were",
        "logged with the KL too large, as XLA summed it (`sere_jax/compilation.py`), by an amount",
        "that is not known; the checkpoints are lost.",
        "",
        "| run | validation ELBO | KL, nats | parameters | minutes |",
        "|---|---|---|---|---|",
    ]
    for run in sorted(finished_runs(directory).values(), key=_last_bits_per_dim):
        last = _last_validation(run)
        error = last["elbo_stderr"] / (run.num_values * math.log(2))
        cells = [
            run.link,
            f"{last['bits_per_dim']:.4f} ± {error:.4f}",
            f"{last['kl']:.0f}",
            f"{run.results['num_params']:,}",
            f"{run.results['train_seconds'] / 60:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def flows_section(directory: pathlib.Path) -> list[str]:
    """SeRe-MAF beside plain flows, best first."""
    runs = finished_runs(directory)
    lines = [
        "## Flows: SeRe-MAF and MAF (paper, section 4.2.2)",
        "",
        "`configs/cifar_maf.py` on `cifar10_jpeg`, all 10,000 test images. Nats in logit space,",
        "more are better: a bound (ELBO) for `sere_maf`, exact for the other two. Equal time: as",
        "many updates as take an hour on two idle cores, at 556 ms an update of `sere_maf`, 634 of",
        "`maf10` and 340 of `maf5`. (Minutes in the table: other work ran beside some of them.)",
        "",
        "| run | log-likelihood or ELBO, nats | importance-weighted, nats | bits/dim "
        "| layers in use | parameters | epochs | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in FLOWS:
        if name not in runs:
            lines.append(f"| {name} | not run | | | | | | |")
    for run in sorted(runs.values(), key=lambda run: -run.results["elbo"]):
        results = run.results
        is_exact = run.config["model"]["latent_shape"] == [0]
        importance_weighted = f"{-results['nll']:.1f} ± {results['nll_stderr']:.1f}"
        cells = [
            run.link,
            f"{results['elbo']:.1f} ± {results['elbo_stderr']:.1f}",
            "" if is_exact else f"{importance_weighted} (K = {results['num_importance_samples']})",
            f"{results['elbo_bits_per_dim']:.4f}",
            "" if is_exact else run.layers_in_use,
            f"{results['num_params']:,}",
            f"{results['epoch']:.1f}",
            f"{results['train_seconds'] / 60:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def likelihood_section(
    heading: str,
    introduction: Sequence[str],
    directory: pathlib.Path,
    expected: Mapping[str, tuple[str, float | None]],
    reference: str | None = None,
) -> list[str]:
    """Runs by the likelihood of the test set in nats, best first.

    Args:
        heading: of the section.
        introduction: its lines.
        directory: where the runs are kept.
        expected: the configuration and the paper's figure of the runs that there should be; those
            that are missing are named. There may be others.
        reference: the run that a column compares the others with, image by image.
    """
    runs = finished_runs(directory)
    columns = ["run", *LIKELIHOOD_COLUMNS, "layers in use", "parameters", "epochs", "minutes"]
    columns.append("commit")
    if reference is not None:
        columns.insert(-5, f"difference to {reference}")
    lines = [f"## {heading}", "", *introduction, "", *_table_head(columns)]
    for run in _best_first(runs):
        results = run.results
        cells = [
            run.link,
            *_likelihood_cells(results),
            *([] if reference is None else [_difference(run, runs.get(reference))]),
            run.layers_in_use,
            f"{results['num_params']:,}",
            f"{results['epoch']:.0f}",
            f"{results['train_seconds'] / 60:.0f}",
            f"`{results['git_commit'][:7]}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, (configuration, paper_nll) in expected.items():
        if name not in runs:
            cells = [f"{name}: `{configuration}`", "not run", _figure_of_paper(paper_nll)]
            cells += [""] * (len(columns) - len(cells))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _table_head(columns):
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _difference(run, reference):
    """-log p(x) of a run less that of another, in nats, with the paired error."""
    if reference is None or run.directory == reference.directory:
        return ""
    difference = reference.log_likelihood() - run.log_likelihood()
    return f"{difference.mean():+.2f} ± {standard_error(difference):.2f}"


def _best_first(runs):
    return sorted(runs.values(), key=lambda run: run.results["nll"])


def _likelihood_cells(results):
    """-log p(x), the paper's, and the ELBO, in nats."""
    return (
        f"{results['nll']:.2f} ± {results['nll_stderr']:.2f}",
        _figure_of_paper(results["paper_nll"]),
        f"{results['elbo']:.2f} ± {results['elbo_stderr']:.2f}",
    )


def _figure_of_paper(nll):
    return "" if nll is None else f"{nll:.2f}"


def long_mnist_section(directory: pathlib.Path) -> list[str]:
    """The runs that aim at the paper's figures."""
    introduction = [
        "All 10,000 test images, 1000 importance samples. Weights: averages, those with the best",
        "ELBO of 5,000 held-out training images; those of `configs/mnist_best.py`, which holds",
        "out 1,000, are the last ones. The command of a run is in its `results.json`; commits are",
        "those of the training, where it recorded its own, or of the evaluation. Minutes of",
        "training are those of one core, but not of one machine.",
    ]
    heading = "Dynamically binarized MNIST (paper, section 4.1)"
    return likelihood_section(heading, introduction, directory, LONG_MNIST_RUNS)


def mnist_comparison_section(directory: pathlib.Path) -> list[str]:
    """The systems and the options beyond the paper at one equal budget."""
    introduction = [
        "`python -m experiments.main --config=configs/mnist_comparison.py:RUN`, evaluated in the",
        "same way, one seed each. The paper does not say how long it trained. Differences to the",
        "SeRe-VAE are those on the same binarized images, ± their standard error over images.",
    ]
    expected = {
        name: (f"mnist_comparison.py:{name}", mnist_comparison.get_config(name).paper.nll)
        for name in mnist_comparison.VARIANTS
        if name
    }
    heading = "The same at one budget of 60 epochs"
    return likelihood_section(heading, introduction, directory, expected, reference="sere_vae")


def mnist_tables() -> str:
    """The README's tables: long trainings, systems and options at one budget; finished runs."""
    long_runs = finished_runs(RESULTS_DIRECTORY / "mnist")
    compared = finished_runs(RESULTS_DIRECTORY / "mnist_comparison")
    lines = _table_head(["long training", "epochs", *LIKELIHOOD_COLUMNS])
    for run in _best_first(long_runs):
        cells = [run.link, f"{run.results['epoch']:.0f}", *_likelihood_cells(run.results)]
        lines.append(f"| {' | '.join(cells)} |")
    reference = compared.get("sere_vae")
    columns = ["system, 60 epochs", *LIKELIHOOD_COLUMNS, "difference to sere_vae", "parameters"]
    lines += ["", *_table_head(columns)]
    for run in _best_first(_among(compared, mnist_comparison.SYSTEMS)):
        cells = [run.link, *_likelihood_cells(run.results), _difference(run, reference)]
        lines.append(f"| {' | '.join(cells)} | {run.results['num_params']:,} |")
    columns = [
        "one option beyond the paper, 60 epochs",
        "",
        "-log p(x), nats",
        "difference to sere_vae",
    ]
    lines += ["", *_table_head([*columns, "parameters"])]
    for run in _best_first(_among(compared, mnist_comparison.BEYOND_THE_PAPER)):
        nll, _, _ = _likelihood_cells(run.results)
        description = mnist_comparison.BEYOND_THE_PAPER[run.directory.name]
        cells = [run.link, description, nll, _difference(run, reference)]
        lines.append(f"| {' | '.join(cells)} | {run.results['num_params']:,} |")
    return "\n".join([*lines, ""])


def _among(runs, names):
    return {name: run for name, run in runs.items() if name in names}


def with_tables(readme: str, tables: str) -> str:
    """The README with the tables in their place.

    Raises:
        ValueError: the lines around that place are not there.
    """
    if readme.find(TABLES_END) < readme.find(TABLES_START) or TABLES_START not in readme:
        raise ValueError(f"{README} needs the lines {TABLES_START!r} and, after it, {TABLES_END!r}")
    before, _, rest = readme.partition(TABLES_START)
    _, _, after = rest.partition(TABLES_END)
    return f"{before}{TABLES_START}\n{tables}\n{TABLES_END}{after}"


def _last_validation(run):
    return [record for record in run.metrics if record["split"] == "validation"][-1]


def _last_bits_per_dim(run):
    return _last_validation(run)["bits_per_dim"]


def _mean_and_error(values):
    return f"{values.mean():.4f} ± {standard_error(values):.4f}"


def page() -> str:
    """The text of RESULTS.md."""
    sections = [
        long_mnist_section(RESULTS_DIRECTORY / "mnist"),
        mnist_comparison_section(RESULTS_DIRECTORY / "mnist_comparison"),
        cases_section(RESULTS_DIRECTORY / "cifar10_jpeg_cases"),
        short_runs_section(RESULTS_DIRECTORY / "cifar10_jpeg_short"),
        flows_section(RESULTS_DIRECTORY / "cifar10_jpeg_flows"),
    ]
    lines = [
        "# Results",
        "",
        "Written by `python -m experiments.results` from `results/`. Layers in use are those whose",
        f"codes have a KL of at least {LEAST_KL} nats, in the mean over the test images.",
    ]
    for section in sections:
        lines += ["", *section]
    return "\n".join([*lines, ""])


def _learning_curves(runs):
    """Logs of the compared systems, and of the options beside what they change, by panels."""
    panels = {
        "systems of the paper": mnist_comparison.SYSTEMS,
        "options beyond the paper": ("sere_vae", *mnist_comparison.BEYOND_THE_PAPER),
    }
    chosen = {
        title: {name: runs[name].metrics for name in names if name in runs}
        for title, names in panels.items()
    }
    return {title: logs for title, logs in chosen.items() if logs}


def main() -> None:
    """Writes the page and the tables, and draws the learning curves if there are any."""
    runs = finished_runs(RESULTS_DIRECTORY / "mnist_comparison")
    if runs:
        figures.save_learning_curves_of_runs(_learning_curves(runs), MNIST_LEARNING_CURVES)
    with open_atomically(PAGE) as file:
        file.write(page().encode())
    readme = with_tables(README.read_text("utf-8"), mnist_tables())
    with open_atomically(README) as file:
        file.write(readme.encode())
    print(f"{PAGE} written, and the tables of {README}")


if __name__ == "__main__":
    console.make_robust()
    main()
