"""What the processes of a run agree on before they begin."""

from collections.abc import Callable
from typing import Any

import sere_jax
from experiments.distributed.processes import check_same, on_every_process, on_first_process
from experiments.settings.checks import as_json, check_configuration, differences
from experiments.training.experiment import Experiment, create_experiment

# Each host may have its images in a place of its own.
FIELDS_OF_ONE_PROCESS = tuple(f"config.dataset.{name}" for name in ("data_dir", "download", "path"))


def create_same_experiment(
    config: Any, mode: str, check_folder: Callable[[Any], None]
) -> Experiment:
    """`create_experiment` in all processes, with the same settings and the same images.

    `check_folder` is called with `config` before the images are loaded, as that may take long.

    Raises:
        UserError, ConfigError: of `create_experiment` or `check_folder`, or processes differ.
    """
    check_same(
        "the settings of this process",
        lambda: {"mode": mode, "config": as_json(config)},
        lambda ours, first: "; ".join(differences(ours, first, FIELDS_OF_ONE_PROCESS)[:5]),
    )
    check_configuration(config)  # a value that nothing may have, before it is compared
    sere_jax.create_model(config)
    check_folder(config)

    def create():
        return create_experiment(config, to_train=mode == "train")

    # Where the hosts share a file system, only the first one prepares and caches the data.
    first = on_first_process(create)
    experiment = on_every_process(lambda: first or create())
    check_same(
        "the images of this process",
        lambda: experiment.dataset.fingerprint,
        lambda ours, first: f"fingerprint {ours} instead of {first}",
    )
    return experiment
