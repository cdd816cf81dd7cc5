"""Writes RESULTS.md, and the README's table, from the finished runs that are kept in results/.

    python -m experiments.results

and draws the learning curves of the compared systems in one figure. `reporting.kept_runs` says what
is kept of a run.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from configs import cifar_proxy, mnist_comparison, mnist_mlp, mnist_options, mnist_resnet
from experiments.reporting import charts_of_runs
from experiments.reporting.kept_runs import LEAST_KL, Run, finished_runs
from experiments.reporting.tables import (
    cases_tables,
    figure_of_paper,
    flows_table,
    likelihood_table,
    spread_over_seeds,
    stand_ins_table,
    table,
)
from experiments.system import console
from experiments.system.errors import UserError, told_in_one_line
from experiments.system.files import open_atomically

RESULTS_DIRECTORY = pathlib.Path("results")
PAGE = pathlib.Path("RESULTS.md")
README = pathlib.Path("README.md")
TABLE_START = "<!-- written by python -m experiments.results -->\n"
TABLE_END = "<!-- end of what it writes -->\n"
MNIST_LEARNING_CURVES = pathlib.Path("docs/mnist_learning_curves.png")
COMPARISON, OPTIONS = "mnist_comparison", "mnist_options"  # configurations, and folders of runs
REFERENCE = mnist_options.REFERENCE

LONG_MNIST_RUNS = {
    "mlp": ("mnist_best.py", mnist_mlp.PAPER_NLL[""]),
    "all_blocks": ("mnist_best.py:all_blocks", None),
    "mlp_splines": ("mnist_best.py:splines", None),
    "resnet": ("mnist_resnet.py", mnist_resnet.PAPER_NLL[""]),
}
LONG_RUNS_OF_README = {
    "all_blocks": "SeRe-VAE whose priors and data layers see all previous blocks",
    "mlp": "SeRe-VAE",
    "resnet": "SeRe-VAE of residual networks",
}
SYSTEMS_OF_README = {
    "sere_vae": "SeRe-VAE",
    "sere_iaf": "SeRe-IAF",
    "ladder_iw10": "Ladder VAE, 10 importance samples",
    "dlgm": "DLGM",
    "ladder": "Ladder VAE",
    "iaf_vae": "IAF, in inference alone",
    "iaf": "IAF, in generation and inference",
    "relaxed_bernoulli": "relaxed Bernoulli VAE",
}

INTRODUCTION = f"""\
# Results

Written by `python -m experiments.results` from `results/`. Layers in use are those whose
codes have a KL of at least {LEAST_KL} nats, in the mean over the images of the evaluation. Each row
says how the run is kept. *Re-evaluable*: with its weights, so that `python -m experiments.main
--workdir=FOLDER --mode=evaluate` computes its figures again. *Record*: with its configuration, log,
figures and, where one was drawn, a sheet of samples, but without weights.
"""
LONG_MNIST = """
## Dynamically binarized MNIST (paper, section 4.1)

All 10,000 test images, 1000 importance samples. The weights are averages, and the last ones of
trainings on 59,000 images. The column "with" says what a row has beyond the plain system; the
paper's Ladder VAE of 81.74 nats has 10 importance samples too. The command of a run is in its
`results.json`; commits are those of the training or, where it recorded none of its own, of the
evaluation. Minutes of training are not of one machine, nor of one number of cores.
"""
MNIST_COMPARISON = """
## The systems of the paper's table at one size and budget

`python -m experiments.main --config=configs/mnist_comparison.py:RUN`: about 5.5 million parameters,
150 epochs of 55,000 images, a learning rate and a warm-up of the KL chosen for each system on
held-out images ([choices](results/mnist_comparison/choices.json); [exceptions](docs/results.md)).
The weights are those with the best ELBO of 5,000 held-out images, of `ladder_iw10` the last ones,
as the bound of 10 samples lowers the ELBO. Differences to the SeRe-VAE are those on the same
binarized images, ± their standard error over images. How far seeds differ is in the section on
screened options. The paper says neither how large its systems were nor how long they trained.
"""
MNIST_OPTIONS = """
## Options beyond the paper at one budget of 60 epochs

`python -m experiments.main --config=configs/mnist_options.py:ROW --config.evaluation.split=test
--config.evaluation.num_examples=0 --config.evaluation.num_importance_samples=1000`, one seed each,
of versions of 25 November 2026, in which these rows were variants of `mnist_comparison.py`, as
their `results.json` say. These options were compared on the test set. Minutes are not of one
machine.
"""
SCREENING = """
## Options screened on held-out images

`python -m experiments.main --config=configs/mnist_options.py:ROW`, 60 epochs: IW-200 of the first
2,000 of 5,000 held-out training images, so that no test image chooses anything. Errors are those
over images; how far seeds differ is below the table. Differences are to seed 0, which is 0.11 nats
above the mean of three. `spline_prior` is of a version whose spline couplings had masks instead of
halves, and more parameters.
"""
LEARNING_CURVES = f"""
![Learning curves of the systems and options]({MNIST_LEARNING_CURVES.as_posix()})

*ELBO of 5,000 held-out training images. Objectives of several samples raise the likelihood at the
cost of the ELBO.*
"""
CASES = """
## Couplings: cases 1, 2 and 3 (paper, section 4.2.1)

In case 1 blocks and codes are independent, p(x) = Π p(x_l) (no coupling); in case 2 data layers
see the previous block (`couple_data` alone); case 3 has all couplings and is the SeRe-VAE.
`configs/cifar_cases.py` on `cifar10_jpeg` (CIFAR-10's images after lossy JPEG encoding:
figures compare among themselves, not with published ones), the first 2,000 test images,
averaged weights. `cifar10_jpeg` is a local data set in the format of TFDS; the configuration
itself names `cifar10`. Equal time: as many updates as take 10 minutes on one idle core. Each case
has a learning rate chosen for it on held-out images, and the blocks follow each other as
neighbours (`block_order=boustrophedon`). (Minutes in the table: other work ran beside them.)
Bits/dim, fewer are better.
"""
LONG_CASES = """
Before that: 45 minutes of one idle core, blocks row by row, for all cases the learning rate that
had been chosen for case 3 (3e-3), all 10,000 test images.
[Where these figures are from](results/cifar10_jpeg_cases_long/README.md).
"""
STAND_INS = """
## Orders of the blocks, and what puts layers into use

`python -m experiments.main --config=configs/cifar_proxy.py:VARIANT` on `cifar10_jpeg`, each pixel
the mean of 2×2: 16×16 images, 16 layers with blocks of 4×4 unless the row says otherwise, 500
updates, a few minutes of one core. ELBO of 1,000 held-out training images, of seeds 0 and 1 where
there are two; KL of the first 500 test images at weight 1. These options were judged on held-out
images alone.
"""
FLOWS = """
## Flows: SeRe-MAF and MAF (paper, section 4.2.2)

`configs/cifar_maf.py` on `cifar10_jpeg`, all 10,000 test images. Nats in logit space, more are
better: a bound (ELBO) for `sere_maf`, exact for the others. The rows `_direct` have direct
connections, and the checkpoint that is best on 5,000 held-out images (they overfit from there) of
trainings with 200 images an update: 2,400 updates of `sere_maf`, 2,000 of the others. The learning
rate of `maf5_direct` and `maf10_direct`, 2.5e-4, is half that of `sere_maf_direct`: it is better on
held-out images. Single batches of theirs diverge at both rates, and the training recovers.
`sere_maf_direct` and `maf10_direct` ran side by side on one H100, products at full float32
precision, with the images in an `npz` file of the same pixels; `maf5_direct` on two CPU cores. The
other rows: 5e-4, 100 images an update, equal time: as many updates as take an hour on two idle
cores, at 556 ms an update of `sere_maf`, 634 of `maf10` and 340 of `maf5`. (Minutes in the table
are up to the checkpoint; other work ran beside some of them.)
"""


def kept(*folders: str) -> list[dict[str, Run]]:
    """The finished runs of each of these folders of results/, by their names."""
    return [finished_runs(RESULTS_DIRECTORY / folder) for folder in folders]


def page() -> str:
    """The text of RESULTS.md."""
    long_runs, compared, options = kept("mnist", COMPARISON, OPTIONS)
    cases, long_cases, stand_ins, flows = kept(
        *(f"cifar10_jpeg_{name}" for name in ("cases", "cases_long", "proxy", "flows"))
    )
    described = mnist_options.OPTIONS
    single = {name: (f"{OPTIONS}.py:{name}", None) for name in described}
    (screened,) = kept("mnist_screening")
    later = {name: what for name, (what, _) in mnist_options.LATER_OPTIONS.items()}
    to_screen = {name: (f"{OPTIONS}.py:{name}", None) for name in (REFERENCE, *later)}
    stand_in_options = {name: what for name, (what, _) in cifar_proxy.OPTIONS.items()}
    to_compare = {
        name: (f"{COMPARISON}.py:{name}", mnist_comparison.get_config(name).paper.nll)
        for name in mnist_comparison.SYSTEMS
    }
    parts = [
        *(INTRODUCTION, LONG_MNIST, likelihood_table(long_runs, LONG_MNIST_RUNS)),
        *(MNIST_COMPARISON, likelihood_table(compared, to_compare, REFERENCE)),
        *(MNIST_OPTIONS, likelihood_table(options, single, REFERENCE, described)),
        *(SCREENING, likelihood_table(screened, to_screen, REFERENCE, described | later)),
        *spread_over_seeds(screened, REFERENCE),
        *(LEARNING_CURVES, CASES, cases_tables(cases)),
        *(LONG_CASES, cases_tables(long_cases)),
        *(STAND_INS, stand_ins_table(stand_ins, stand_in_options)),
        *(FLOWS, flows_table(flows)),
    ]
    return "".join(part if isinstance(part, str) else "\n".join(["", *part, ""]) for part in parts)


def readme_table() -> str:
    """The README's table: the systems of the paper on MNIST, best first."""
    long_runs, compared = kept("mnist", COMPARISON)
    runs = [
        (labels[name], run)
        for labels, runs_of in ((LONG_RUNS_OF_README, long_runs), (SYSTEMS_OF_README, compared))
        for name, run in runs_of.items()
        if name in labels
    ]
    rows = [
        [
            f"[{label}]({run.directory.as_posix()})",
            f"{run.results['epoch']:.0f}",
            run.options_in_use,
            f"{run.results['nll']:.2f} ± {run.results['nll_stderr']:.2f}",
            figure_of_paper(run.results["paper_nll"]),
            run.kind,
        ]
        for label, run in sorted(runs, key=lambda item: item[1].results["nll"])
    ]
    columns = ["MNIST, dynamically binarized", "epochs", "with"]
    columns += ["-log p(x), nats", "the paper", "kept as"]
    return "\n".join([*table(columns, rows), ""])


def with_table(readme: str, lines: str) -> str:
    """The README with the table between its marks; without marks, the README as it is.

    Raises:
        UserError: one of the marks is missing, or the second one comes first.
    """
    if TABLE_START not in readme and TABLE_END not in readme:
        return readme
    if readme.find(TABLE_END) < readme.find(TABLE_START) or TABLE_START not in readme:
        raise UserError(f"{README} needs the lines {TABLE_START!r} and, after it, {TABLE_END!r}")
    before, _, rest = readme.partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    return f"{before}{TABLE_START}\n{lines}\n{TABLE_END}{after}"


def learning_curves(
    compared: Mapping[str, Run], options: Mapping[str, Run]
) -> dict[str, dict[str, Sequence[Mapping[str, Any]]]]:
    """Logs of the compared systems, and of the options beside what they change, by panels."""
    panels = {
        "systems of the paper": (compared, mnist_comparison.SYSTEMS),
        "options beyond the paper": (options, (REFERENCE, *mnist_options.OPTIONS)),
    }
    chosen = {
        title: {name: runs[name].metrics for name in names if name in runs}
        for title, (runs, names) in panels.items()
    }
    return {title: logs for title, logs in chosen.items() if logs}


def main() -> None:
    """Writes the page and the table, and draws the learning curves if there are any."""
    with told_in_one_line():
        text = page()
        readme = with_table(README.read_text("utf-8"), readme_table())
        compared, options = kept(COMPARISON, OPTIONS)
        panels = learning_curves(compared, options)
        if panels:
            charts_of_runs.save_learning_curves_of_runs(panels, MNIST_LEARNING_CURVES)
        for path, content in ((PAGE, text), (README, readme)):
            with open_atomically(path) as file:
                file.write(content.encode())
        print(f"{PAGE} written, and the table of {README}")


if __name__ == "__main__":
    console.make_robust()
    main()
