"""The training loop: dispatch, log, evaluate, save, stop."""

import math
import time
from typing import Any

import jax
import numpy as np

from experiments.distributed.devices import replicate
from experiments.distributed.interruption import Interruption
from experiments.distributed.processes import is_first_process, json_of_first_process, tell
from experiments.run_folder.folder import RunFolder
from experiments.settings.checks import as_json
from experiments.system import computer
from experiments.system.progress import progress_bar
from experiments.training.early_stopping import Patience, patience_of
from experiments.training.experiment import Experiment
from experiments.training.records import check_bounds, check_convergence, elbo_record, train_record
from experiments.training.resume import resume
from experiments.training.state import TrainState


def train_to_last_step(experiment: Experiment, folder: RunFolder, command: str) -> bool:
    """Trains from the last checkpoint, or from the start, until the end or a signal.

    Where `config.training.patience` is over, that is the end.

    `folder` is open for training; `command` is saved with the weights.

    Returns:
        Whether the end was reached; False after a signal. The state is saved either way.

    Raises:
        TrainingDivergedError: the run cannot go on.
    """
    state, train_seconds = resume(experiment, folder)
    step, total = int(state.step), experiment.total_steps
    patience = patience_of(experiment, folder, step)
    if step >= total or patience.is_over:
        return True
    tell(*experiment.summary())
    training = _Training(experiment, folder, command, state, train_seconds, patience)
    del state  # is on the devices now
    with (
        folder.logging_from(step),
        Interruption() as interruption,
        progress_bar(total, step, folder.path.name, disable=not is_first_process()) as bar,
    ):
        folder.log_continuations(step, experiment.steps_per_epoch)
        bar.set_postfix_str("compiling")
        while training.step < total and not training.is_out_of_patience:
            num_steps = training.dispatch()
            bar.update(num_steps)
            bar.set_postfix_str(training.news, refresh=False)
            validation_elbo = training.evaluate()
            # Read once: it may come at any moment, and to any of the processes.
            signal = interruption.requested()
            is_stopped = signal is not None or training.is_out_of_patience
            training.save_if_due(validation_elbo, is_stopped=is_stopped)
            if signal:
                folder.wait_for_saves()
                bar.close()
                tell(
                    f"{signal.name}: saved at step {training.step} of {total}; "
                    "the same command resumes"
                )
                return False
        folder.wait_for_saves()
    return True


class _Training:
    """A training under way: its state, and what is done after how many steps."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        command: str,
        state: TrainState,
        train_seconds: float,
        patience: Patience,
    ):
        config, dataset = experiment.config, experiment.dataset
        self.step = int(state.step)
        self.news = ""  # of the last dispatch, for the progress bar
        self.is_out_of_patience = False
        self._patience = patience
        self._training_bits = math.nan  # of the last dispatch
        self._experiment, self._folder = experiment, folder
        self._dispatch = experiment.create_train_dispatch()
        self._state, self._train_seconds = replicate(state), train_seconds
        self._examples = experiment.examples(self.step, state.key)
        self._validation = experiment.place(dataset.validation)
        labels = dataset.labels
        self._validation_labels = None if labels is None else replicate(labels.validation)
        self._evaluate_every = experiment.interval_in_steps("training", "evaluate_every")
        self._save_every = experiment.interval_in_steps("training", "checkpoint_every")
        self._test_every = None
        if config.evaluation.test_elbo_every:
            self._test_every = experiment.interval_in_steps("evaluation", "test_elbo_every")
            self._test_images = experiment.place(experiment.evaluated_images())
            self._test_labels = None if labels is None else replicate(experiment.evaluated_labels())
        self._origin = {
            "dataset_fingerprint": dataset.fingerprint,
            "config": as_json(config),
            "command": command,
            "git_commit": experiment.git_commit,
            "computer": computer.describe(),
        }

    def dispatch(self) -> int:
        """Makes the updates until something is due, and logs them; returns their number."""
        started = time.perf_counter()
        num_steps, (images, *labels) = next(self._examples)
        self._state, metrics = self._dispatch(self._state, images, num_steps, *labels)
        metrics = jax.tree.map(float, metrics)
        self._folder.raise_save_errors()
        seconds = time.perf_counter() - started
        self._train_seconds += seconds
        self.step += num_steps
        record = train_record(self._experiment, self._state, metrics, num_steps / seconds)
        self._log("train", record)
        check_convergence(self._experiment, self._folder, self._state, metrics)
        self._training_bits = record["bits_per_dim"]
        self.news = (
            f"elbo {record['elbo']:.2f}, {record['bits_per_dim']:.3f} bits/dim, "
            f"{record['images_per_second']:.0f} images/s"
        )
        return num_steps

    def evaluate(self) -> float | None:
        """Logs the ELBOs that are due; returns that of the validation images, in nats."""
        validation_elbo = None
        if len(self._validation) and self._is_due(self._evaluate_every):
            per_image, validation_elbo = self._log_elbo(
                "validation", self._validation, self._validation_labels
            )
            check_bounds(self._experiment, self._folder, self.step, self._training_bits, per_image)
            self._patience.see(self.step, validation_elbo)
            self.is_out_of_patience = json_of_first_process(self._patience.is_over)
        if self._test_every and self.step % self._test_every == 0:
            per_image, _ = self._log_elbo("test", self._test_images, self._test_labels)
            self._folder.save_arrays(f"test_elbo_{self.step}", elbo=np.float32(per_image))
        return validation_elbo

    def save_if_due(self, validation_elbo: float | None, *, is_stopped: bool) -> None:
        """Starts saving the state at its time, at the end, and where the run stops before it."""
        is_due = self._is_due(self._save_every)
        if is_due or is_stopped:
            progress = {"train_seconds": self._train_seconds, **self._origin}
            # A checkpoint saved for a signal, or because patience ran out, is no candidate for the
            # best: when it is saved is an accident.
            self._folder.save(self._state, progress, validation_elbo if is_due else None)

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0 or self.step == self._experiment.total_steps

    def _log_elbo(self, split: str, images: Any, labels: Any) -> tuple[np.ndarray, float]:
        elbo = self._experiment.evaluator.elbo(self._state.ema_params, images, split, labels)
        record = elbo_record(self._experiment, elbo, split)
        self._log(split, record)
        return elbo.per_image, record["elbo"]

    def _log(self, split: str, record: dict[str, Any]) -> None:
        self._folder.log(self.step, self.step / self._experiment.steps_per_epoch, split, record)
