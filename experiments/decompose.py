"""Says where the nats of a trained model are: what its bounds lack, and what it overfits.

    python -m experiments.decompose --workdir=runs/mnist_mlp

Prints a table of differences in nats, ± standard error over images, and writes it into the workdir,
`decomposition.json`. It takes the first images of the test set and as many training images; more
of them (--num_images) make the errors smaller.
"""

import argparse
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from experiments.data.condition import condition_rows
from experiments.data.stored import Images
from experiments.reporting.tables import table
from experiments.run_folder import configuration
from experiments.run_folder.extension import import_extension
from experiments.run_folder.folder import load_weights
from experiments.run_folder.lock import lock
from experiments.system import console, host_memory
from experiments.system.errors import UserError, told_in_one_line
from experiments.system.files import write_json_atomically
from experiments.system.paths import local_path
from experiments.system.progress import progress_bar
from experiments.training import decomposition
from experiments.training.experiment import Experiment, create_experiment

FILE = "decomposition.json"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much of what is computed."""

    num_images: int  # of the test set, and of the training set
    num_samples: int  # of the codes of an image
    steps: int  # of the search for better features


def bounds_of(
    experiment: Experiment,
    params: Any,
    images: Images,
    split: str,
    *,
    num_samples: int,
    search_steps: int = 0,
) -> dict[str, np.ndarray]:
    """Both bounds [num] of images in nats, float64; see `decomposition.bounds`."""
    size = min(experiment.config.evaluation.batch_size, len(images))
    labels = experiment.dataset.labels
    of_split = None if labels is None else getattr(labels, split)
    parts = []
    with progress_bar(len(images), 0, f"{split}, {search_steps} steps", unit=" images") as bar:
        for start in range(0, len(images), size):
            indices = np.minimum(np.arange(start, start + size), len(images) - 1)
            x, keys = experiment.evaluator.to_data_space(images, indices, split)
            found = decomposition.bounds(
                experiment.model,
                params,
                x,
                keys,
                num_samples=num_samples,
                samples_at_once=min(experiment.config.evaluation.samples_at_once, num_samples),
                search_steps=search_steps,
                condition=condition_rows(
                    None if of_split is None else of_split[indices],
                    len(indices),
                    experiment.model.config.condition_size,
                ),
            )
            parts.append(jax.tree.map(np.float64, found))
            bar.update(min(size, len(images) - start))
    return {
        name: np.concatenate([getattr(part, name) for part in parts])[: len(images)]
        for name in ("log_likelihood", "elbo")
    }


def decompose(
    experiment: Experiment, params: Any, effort: Effort
) -> dict[str, tuple[float, float]]:
    """Each difference in nats with its standard error over images."""
    test = experiment.dataset.test[: effort.num_images]
    train = experiment.dataset.train[: effort.num_images]
    bounds = functools.partial(bounds_of, experiment, params, num_samples=effort.num_samples)
    of_test, of_train = bounds(test, "test"), bounds(train, "train")
    searched = bounds(test, "test", search_steps=effort.steps)
    hardness = decomposition.hardness(np.concatenate([train, test]))
    covariates = hardness[: len(train)], hardness[len(train) :]

    def overfit(name: str) -> tuple[float, float]:
        return decomposition.adjusted_difference(of_train[name], of_test[name], covariates)

    gap = {
        name: bounds["log_likelihood"] - bounds["elbo"]
        for name, bounds in (("train", of_train), ("test", of_test))
    }
    return {
        "-log p(x) of the test images": decomposition.mean_and_error(-of_test["log_likelihood"]),
        "log p(x) - ELBO": decomposition.mean_and_error(gap["test"]),
        "of it amortization, at least": decomposition.mean_and_error(
            searched["elbo"] - of_test["elbo"]
        ),
        "log p(x), by better features": decomposition.mean_and_error(
            searched["log_likelihood"] - of_test["log_likelihood"]
        ),
        "ELBO of training images - of test images": overfit("elbo"),
        "of it the generative half, by log p(x)": overfit("log_likelihood"),
        "of it the encoders": decomposition.adjusted_difference(
            -gap["train"], -gap["test"], covariates
        ),
    }


def main() -> None:
    """Reads the run, decomposes its bounds, prints and writes them."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.decompose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    number = functools.partial(parser.add_argument, type=int)
    number("--num_images", default=500, help="of the test set, and as many training images: 500")
    number("--num_samples", default=1000, help="samples of the codes of an image: 1000")
    number("--steps", default=300, help="of the search for better features of an image: 300")
    arguments = parser.parse_args()
    effort = Effort(arguments.num_images, arguments.num_samples, arguments.steps)
    for name, value in dataclasses.asdict(effort).items():
        least = 2 if name == "num_images" else 1
        if value < least:
            parser.error(f"--{name}={value} must be at least {least}")
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_enable_x64", False)  # whatever the environment says
    with told_in_one_line(ValueError):
        decompose_run(local_path(arguments.workdir, "--workdir"), effort)


def decompose_run(workdir: pathlib.Path, effort: Effort) -> dict[str, tuple[float, float]]:
    """`decompose` of the weights of a workdir; prints it, and writes `FILE` into the workdir.

    Raises:
        UserError, ConfigError, ValueError: there is no such run, it has no codes, or the images are
            not those that it was trained on.
        OSError: `FILE` cannot be written.
    """
    config = configuration.get_config(str(workdir))
    import_extension(workdir)
    experiment = create_experiment(config, to_train=False)
    if not experiment.model.config.has_latents:
        raise UserError(f"--workdir={workdir} has no codes: log p(x) is exact, and no bound of it")
    with lock(workdir):
        which = experiment.config.evaluation.checkpoint
        averages, about = load_weights(workdir, experiment.state_template(), which)
        found = experiment.dataset.fingerprint
        if about.get("dataset_fingerprint", found) != found:
            raise UserError(
                f"the images of {config.dataset.name!r} are not those that --workdir={workdir} was "
                "trained on, or not in that order; restore them, as others tell nothing of what it "
                "has overfitted"
            )
        differences = decompose(experiment, jax.device_put(averages), effort)
        origin = {"step": about["step"], "git_commit": experiment.git_commit}
        settings = dataclasses.asdict(effort) | origin
        rows = [[name, f"{mean:.2f} ± {error:.2f}"] for name, (mean, error) in differences.items()]
        print("\n".join(table(["nats", workdir.name], rows)))
        write_json_atomically(workdir / FILE, settings | {"nats": differences})
    return differences


if __name__ == "__main__":
    host_memory.keep_freed_memory()
    console.make_robust()
    main()
