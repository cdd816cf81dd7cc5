"""Prints what differs between runs and what came out, and draws their learning curves.

    python -m experiments.compare runs/digits runs/digits-learning_rate=3e-3

Runs may be under way, finished, or kept in results/; their folders are only read.
"""

import argparse
import pathlib

from experiments.reporting.charts_of_runs import save_labelled_curves
from experiments.reporting.comparison import aligned, notes, on_its_side, read_runs, rows
from experiments.system import console
from experiments.system.errors import told_in_one_line
from experiments.system.paths import local_path, path_to_write


def compare(folders: list[pathlib.Path], picture: pathlib.Path) -> str:
    """Draws the picture and returns the table and a line about the picture.

    Raises:
        UserError: a folder holds no run.
    """
    runs = read_runs(folders)
    text = "\n".join([*aligned(*on_its_side(*rows(runs))), *notes(runs)])
    if not save_labelled_curves({run.name: run.metrics for run in runs}, picture):
        return f"{text}\nno picture: none of them has logged an ELBO yet"
    return f"{text}\nlearning curves in {picture}"


def main() -> None:
    """Reads the arguments; what is wrong with them is one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="+", help="folder of a run")
    parser.add_argument("--picture", default="compare.png", help="PNG file of the curves")
    arguments = parser.parse_args()
    with told_in_one_line():
        folders = [local_path(run, "RUN") for run in dict.fromkeys(arguments.run)]
        print(compare(folders, path_to_write(arguments.picture, "--picture")))


if __name__ == "__main__":
    console.make_robust()
    main()
