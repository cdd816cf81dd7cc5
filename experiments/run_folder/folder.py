"""The folder of one run, as all its processes see it."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from experiments.distributed.processes import (
    done_by_first_process,
    on_first_process,
    restored_by_first_process,
    skipped_by_others,
)
from experiments.run_folder import RESULTS_FILE, exported_weights
from experiments.run_folder.checkpoints import CHECKPOINTS, Checkpoints
from experiments.run_folder.configuration import CONFIG_FILE
from experiments.run_folder.continuations import read_continuations, record_continuation
from experiments.run_folder.extension import record_extension
from experiments.run_folder.lock import lock
from experiments.run_folder.metrics import TENSORBOARD_DIRECTORY, MetricsLogger, read_metrics
from experiments.run_folder.same_run import (
    check_can_train,
    check_checkpoint,
    check_configuration_of,
    check_images,
)
from experiments.run_folder.sinks import check_sinks
from experiments.run_folder.tensorboard import write_outcome
from experiments.settings.checks import flat
from experiments.settings.fields import defaults
from experiments.system.errors import UserError
from experiments.system.files import open_atomically, write_json_atomically
from experiments.system.paths import check_name

# What is known of weights; earlier versions recorded less.
_ABOUT_WEIGHTS = ("train_seconds", "command", "git_commit", "computer", "dataset_fingerprint")

_FIGURES = ("nll", "elbo", "bits_per_dim", "elbo_bits_per_dim")  # of `results.json`


def load_weights(workdir: pathlib.Path, template: Any, which: str) -> tuple[Any, dict[str, Any]]:
    """The averaged parameters of a workdir, which is only read, or those exported from one.

    Args:
        workdir: of a run, or a folder with its `config.json` and exported weights.
        template: a state of the same structure and shapes.
        which: "best", the checkpoint of the highest validation ELBO (the last one, if there was no
            validation), or "last". Exported weights leave no choice.

    Returns:
        Host arrays, and JSON values: `step`, `validation_elbo` in nats or None, `train_seconds`,
        and, where they were recorded, the `command` that trained them, its `git_commit`, the
        `computer` it ran on and the `dataset_fingerprint` of its images.

    Raises:
        UserError: there are no weights, or they cannot be read.
    """
    exported = exported_weights.find(workdir)
    if exported and not (workdir / CHECKPOINTS).exists():
        return exported_weights.read(exported, template.params)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.choose(which)
        if step is None:
            raise UserError(f"there is no checkpoint in {checkpoints.directory}; train first")
        state, progress = checkpoints.restore(template, step)
        about = {"step": step, "validation_elbo": checkpoints.validation_elbo(step)}
    known = {name: progress[name] for name in _ABOUT_WEIGHTS if name in progress}
    return state.ema_params, about | known


class RunFolder(contextlib.ExitStack):
    """Configuration, lock, checkpoints, logs, weights and results of one run.

    The first process alone reads and writes them; the others need no access to the folder. Every
    process calls the same methods in the same order. The first one does the work, and its answer,
    or its UserError, is that of all. `save`, `log` and `raise_save_errors` do nothing in the
    others, which do not wait for them. The end of the `with` block lets go of the folder.

    Args:
        path: of the folder.
    """

    _checkpoints: Checkpoints  # once opened, in the first process
    _logger: MetricsLogger | None = None
    _config: Any = None  # of the training

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path

    # ------------------------------------------------------------------------- what run it holds

    @done_by_first_process
    def check_can_train(self, config: Any, *, extend: bool = False) -> None:
        """Checks, without touching the folder, that `config` may be trained there.

        And that the packages are there that `config.training.sinks` needs.
        """
        check_name(self.path)
        check_can_train(self.path, config, extend=extend)
        check_sinks(config)

    @done_by_first_process
    def check_trained(self, config: Any) -> None:
        """Checks that the folder holds a run that was trained with `config`."""
        check_configuration_of(self.path, config)

    @done_by_first_process
    def lock(self) -> None:
        """Creates the folder and holds its lock."""
        self.enter_context(lock(self.path))

    @done_by_first_process
    def open_for_training(
        self,
        config: Any,
        extension: str | None,
        fingerprint: str,
        *,
        extend_by: tuple[int, str] | None = None,
    ) -> None:
        """Holds the lock, opens the checkpoints and records what is trained.

        `extension`, see `record_extension`, is None where there is none or it is not known.
        `fingerprint` is that of the images.
        `extend_by`, steps an epoch and the command, is given where the run may become longer.

        Raises:
            UserError: the folder belongs to a different run, or one on other images, or `config` is
                no longer than it.
        """
        self.enter_context(lock(self.path))
        check_can_train(self.path, config, extend=extend_by is not None)
        keep = config.training.keep_checkpoints
        self._checkpoints = self.enter_context(Checkpoints(self.path, keep=keep))
        if newest := self._checkpoints.newest_progress():
            check_images(self.path, newest, config, fingerprint)
        if extend_by is not None:
            record_continuation(self.path, config, *extend_by)
        write_json_atomically(self.path / CONFIG_FILE, config.to_dict())
        if extension is not None:
            record_extension(self.path, extension)
        self._config = config

    @done_by_first_process
    def continuations(self) -> list[dict[str, Any]]:
        """See `read_continuations`."""
        return read_continuations(self.path)

    # ------------------------------------------------------------------------- state and weights

    def restore_latest(
        self, template: Any, config: Any, fingerprint: str, lost_after: int
    ) -> tuple[Any, dict[str, Any]] | None:
        """State and progress of the newest readable checkpoint; None where a run is to start.

        Raises:
            UserError: the checkpoints cannot be read, are of another configuration or of other
                images, or are gone though step `lost_after` was reached, when one must exist.
        """

        def restore():
            restored = self._checkpoints.restore_latest(template)
            if restored is None:
                self._check_nothing_is_lost(lost_after)
                return None
            step, progress = int(restored[0].step), restored[1]
            check_checkpoint(self.path, step, progress, config, fingerprint)
            logging.info("resuming %s at step %d", self.path, step)
            return restored

        return restored_by_first_process(template, restore)

    def _check_nothing_is_lost(self, lost_after):
        logged = max((record["step"] for record in read_metrics(self.path)), default=0)
        if logged > lost_after or (self.path / RESULTS_FILE).exists():
            raise UserError(
                f"--workdir={self.path} was trained to step {logged} but has no checkpoint any "
                "more; put its folder checkpoints/ back, or choose another --workdir"
            )

    @skipped_by_others
    def save(self, state: Any, progress: dict[str, Any], validation_elbo: float | None) -> None:
        """Starts saving a checkpoint; see `Checkpoints.save`."""
        self._checkpoints.save(state, progress, validation_elbo)

    @skipped_by_others
    def raise_save_errors(self) -> None:
        """Returns at once; raises the OSError of the last `save` if it has failed meanwhile."""
        self._checkpoints.raise_save_errors()

    @done_by_first_process
    def wait_for_saves(self) -> None:
        """Returns when the last checkpoint is on the disk."""
        self._checkpoints.wait()

    @done_by_first_process
    def saved_steps(self) -> list[int]:
        """Steps of the checkpoints on the disk, once the last one is; oldest first."""
        self._checkpoints.wait()
        return self._checkpoints.steps()

    @done_by_first_process
    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest validation ELBO, once the last one is saved."""
        self._checkpoints.wait()
        return self._checkpoints.best_step()

    def load_weights(self, template: Any, which: str) -> tuple[Any, dict[str, Any]]:
        """See the function `load_weights`."""
        loaded = restored_by_first_process(
            template.params, lambda: load_weights(self.path, template, which)
        )
        assert loaded is not None
        return loaded

    # --------------------------------------------------------------------------- logs and results

    @contextlib.contextmanager
    def logging_from(self, resume_step: int) -> Iterator[None]:
        """Opens the logs of a training that goes on from `resume_step`, for `log`."""
        logger = on_first_process(lambda: self._new_logger(resume_step))
        with logger or contextlib.nullcontext():
            self._logger = logger
            yield

    @done_by_first_process
    def log_continuations(self, step: int, steps_per_epoch: int) -> None:
        """Logs, at `step`, those continuations that are not in the log, as split "continuation"."""
        known = ("from_epochs", "to_epochs", "from_steps", "to_steps", "schedule", "command")
        logged = [r for r in read_metrics(self.path) if r.get("split") == "continuation"]
        in_log = {record.get("to_steps") for record in logged}
        for entry in read_continuations(self.path):
            if entry["to_steps"] not in in_log:
                record = {name: entry[name] for name in known}
                self.log(step, step / steps_per_epoch, "continuation", record)

    @done_by_first_process
    def validation_elbos(self, last_step: int) -> list[tuple[int, float | None]]:
        """Steps and validation ELBOs in nats that were logged until `last_step`, oldest first."""
        return [
            (record["step"], record.get("elbo"))
            for record in read_metrics(self.path)
            if record.get("split") == "validation" and record["step"] <= last_step
        ]

    def _new_logger(self, resume_step):
        return MetricsLogger(self.path, resume_step=resume_step, config=self._config)

    @skipped_by_others
    def log(self, step: int, epoch: float, split: str, metrics: Mapping[str, Any]) -> None:
        """Logs metrics of one split; see `MetricsLogger.write`."""
        assert self._logger is not None
        self._logger.write(step, epoch, split, metrics)

    @done_by_first_process
    def save_arrays(self, name: str, **arrays: Any) -> None:
        """Writes `NAME.npz` with arrays by name."""
        with open_atomically(self.path / f"{name}.npz") as file:
            np.savez_compressed(file, **arrays)

    @done_by_first_process
    def save_results(self, results: dict[str, Any]) -> None:
        """Writes `results.json`."""
        write_json_atomically(self.path / RESULTS_FILE, results)

    @done_by_first_process
    def show_in_tensorboard(self, config: Any, results: dict[str, Any]) -> None:
        """Adds hyperparameters, figures of the evaluation and samples to TensorBoard's log."""
        samples = self.path / "samples.png"
        pictures = {"samples": samples.read_bytes()} if samples.exists() else {}
        figures = {f"{results['split']}/{name}": results[name] for name in _FIGURES}
        fields, directory = flat(config.to_dict()), self.path / TENSORBOARD_DIRECTORY
        write_outcome(directory, results["step"], fields, figures, pictures)

    @done_by_first_process
    def is_evaluated(self, evaluation: Any, stopped_early: dict[str, Any] | None) -> bool:
        """Whether `results.json` is of the weights and of the settings `config.evaluation`.

        `stopped_early` is what it has to say of that.
        """
        path = self.path / RESULTS_FILE
        if not path.exists():
            return False
        try:
            results = json.loads(path.read_bytes())
            step = self._checkpoints.choose(evaluation.checkpoint)
            is_of_this_length = results.get("continuations", []) == read_continuations(self.path)
            is_of_this_length &= results.get("stopped_early") == stopped_early
            # Earlier versions had fewer settings.
            settings = defaults()["evaluation"] | results["evaluation"]
            is_same = settings == evaluation.to_dict() and results["step"] == step
            return is_same and is_of_this_length
        except (ValueError, TypeError, KeyError):  # damaged: evaluated anew
            return False
