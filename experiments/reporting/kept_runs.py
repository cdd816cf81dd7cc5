"""Finished runs that are kept in `results/`, and how they compare image by image.

A kept run is a workdir without its checkpoints and without the pictures that a command draws again:
`config.json`, `results.json`, `metrics.jsonl.gz` (by `gzip -9n metrics.jsonl`), where runs are
compared image by image `test_*.npz`, and either exported weights or `samples.png`.
"""

import collections
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reporting.captions import LEAST_KL
from experiments.run_folder import RESULTS_FILE, exported_weights
from experiments.run_folder.configuration import CONFIG_FILE
from experiments.run_folder.metrics import read_metrics
from experiments.system.errors import UserError
from experiments.training.evaluation import standard_error

DROPOUT = {
    "dropout": "in networks that read images",
    "generative_dropout": "in priors and data layers",
    "block_dropout": "of the previous blocks' pixels",
}
_RUN_FILES = (CONFIG_FILE, RESULTS_FILE)


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
    def kind(self) -> str:
        """'re-evaluable' if its weights are kept, else 'record'."""
        return "re-evaluable" if exported_weights.find(self.directory) else "record"

    @property
    def layers_in_use(self) -> str:
        """How many layers have a KL of at least `LEAST_KL`, of how many."""
        return f"{self.layers_above(LEAST_KL)} of {len(self.results['kl_per_layer'])}"

    def layers_above(self, nats: float) -> int:
        """How many layers have a KL of at least so many nats, in the mean over images."""
        return sum(value >= nats for value in self.results["kl_per_layer"])

    @property
    def options_in_use(self) -> str:
        """What its configuration adds to the paper's SeRe-VAE, in a few words."""
        return ", ".join(_options_in_use(self.config))

    @property
    def link(self) -> str:
        """Its name, as a link to its directory."""
        return f"[{self.directory.name}]({self.directory.as_posix()})"

    def bits_per_dim(self, name: str, step: int | None = None) -> np.ndarray:
        """Bits/dim of each image [num] by its `elbo` or `log_likelihood`.

        They are those of the final evaluation, or of an evaluation during training at `step`.
        """
        file = None if step is None else f"test_elbo_{step}.npz"
        return -self._of_images(name, file) / self._nats_of_a_bit_per_dim

    def held_out_bits_per_dim(self) -> tuple[float, float]:
        """Bits/dim of the last ELBO of the held-out training images, and their standard error."""
        last = [record for record in self.metrics if record["split"] == "validation"][-1]
        nats = self._nats_of_a_bit_per_dim
        return -last["elbo"] / nats, last["elbo_stderr"] / nats

    @property
    def _nats_of_a_bit_per_dim(self) -> float:
        return math.prod(self.config["model"]["data_shape"]) * math.log(2)

    def log_likelihood(self) -> np.ndarray:
        """Importance-weighted log p(x) of each image, in nats, [num]."""
        return self._of_images("log_likelihood")

    def _of_images(self, name: str, file: str | None = None) -> np.ndarray:
        """Of the final evaluation unless `file` says otherwise."""
        file = file or f"{self.results.get('split', 'test')}_images.npz"
        return np.load(self.directory / file)[name].astype(np.float64)

    def tested_steps(self) -> list[int]:
        """Steps during training of which the test images' ELBOs are kept, in order."""
        files = self.directory.glob("test_elbo_*.npz")
        steps = sorted(int(file.stem.removeprefix("test_elbo_")) for file in files)
        return [step for step in steps if step < self.results["step"]]


def _options_in_use(config: Mapping[str, Any]) -> Iterator[str]:
    """Of a configuration of MNIST; earlier versions had fewer fields."""
    model, training, dataset = (
        collections.defaultdict(int, config.get(name, {}))
        for name in ("model", "training", "dataset")
    )
    if source := training["initial_weights"]:
        yield f"weights of {pathlib.PurePath(source).name} at the start"
    if (samples := training["num_train_samples"]) > 1:
        start = training["importance_weighted_from"] or "0%"
        yield f"IW-{samples}" if start == "0%" else f"IW-{samples} from {start}"
    if share := dataset["random_affine"]:
        yield f"affine maps of {share:.0%} until {dataset['random_affine_until']}"
    for name, where in DROPOUT.items():
        if share := model[name]:
            yield f"dropout of {share:.0%} {where}"
    if decay := training["weight_decay"]:
        yield f"weight decay of {decay:g}"
    if training["max_update_rms"]:
        yield "limited updates"
    if training["optimizer"] and training["optimizer"] != "adam":
        yield training["optimizer"].capitalize()
    if model["data_context"] > 1 or model["couple_data_to_prior"]:
        yield "previous blocks seen"
    if layers := model["num_joint_layers"]:
        yield f"{layers} joint layer" + "s" * (layers > 1)
    if model["system"] == "relaxed_bernoulli_vae":
        yield f"posterior temperature {model['posterior_temperature']:g}"
    if model["system"] == "sere_vae":
        yield from _options_of_the_hierarchy(model)


def _options_of_the_hierarchy(model: Mapping[str, Any]) -> Iterator[str]:
    if model["partition"] == "checkerboard":
        yield f"{model['num_layers']} interleaved blocks"
    if model["data_channels"]:
        yield "data layers convolutional"
    if model["encoder"] == "shared":
        yield "one encoder"
    if model["context"] > 1:
        yield f"{model['context']} previous codes seen"
    if len(set(model["latent_sizes"] or ())) > 1:
        yield "unequal layers"
    if model["state_size"]:
        yield "a state of all codes"
    if model["prior"] == "spline":
        yield "spline prior"
    if model["carry_start"] and model["couple_bijector"]:
        yield "codes handed on"


def finished_runs(directory: pathlib.Path) -> dict[str, Run]:
    """The runs kept in a folder by their names, sorted.

    Raises:
        UserError: the code of one of them was not that of a commit.
    """
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    runs = [Run(path) for path in paths if all((path / name).exists() for name in _RUN_FILES)]
    for run in runs:
        for name in ("git_commit", "evaluation_git_commit"):
            commit = run.results.get(name) or ""
            if commit.endswith("-dirty"):
                raise UserError(
                    f"{run.directory / RESULTS_FILE} has {name}={commit}: files differed from that "
                    "commit, so that nobody can compute these figures again; commit the files and "
                    "run it again, or remove the folder"
                )
    return {run.directory.name: run for run in runs}


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
    """The gap between two systems by bits/dim of the same images [num], of each seed."""
    pairs = zip(first, second, strict=True)
    differences = np.stack([one - other for one, other in pairs])  # [seeds, num]
    return Gap(
        mean=float(differences.mean()),
        image_error=standard_error(differences.mean(axis=0)),
        per_seed=tuple(float(value) for value in differences.mean(axis=1)),
    )
