"""What the command does in each mode: train, evaluate, sample, report, export."""

import functools
import pathlib
from typing import Any

import numpy as np

from experiments.command_line.final_evaluation import evaluate_and_report
from experiments.distributed.processes import done_by_first_process, tell
from experiments.reporting.model_pictures import save_curves, save_samples
from experiments.reporting.report import write_report
from experiments.run_folder import exported_weights
from experiments.run_folder.card import write_card
from experiments.run_folder.folder import RunFolder
from experiments.run_folder.lock import lock
from experiments.run_folder.same_run import check_configuration_of
from experiments.settings.checks import check_configuration
from experiments.system.errors import UserError
from experiments.system.files import open_atomically
from experiments.training import early_stopping
from experiments.training.agreement import create_same_experiment
from experiments.training.continuation import continued, described
from experiments.training.loop import train_to_last_step
from experiments.training.resume import check_initial_weights
from experiments.training.rounding import loss_by_rounding
from experiments.training.trained_model import load_model
from experiments.training.unusual_settings import unusual_settings


def train(
    config: Any,
    workdir: pathlib.Path,
    command: str,
    config_argument: str | None = None,
    *,
    extend: bool = False,
) -> None:
    """Trains from the last checkpoint or from the start, then evaluates and reports.

    Args:
        config: of the experiment.
        workdir: folder of the run.
        command: as the user typed it, for `results.json`.
        config_argument: the file that `config` is from, or FILE:VARIANT. It is recorded where the
            run uses an extension, so that later commands find it.
        extend: whether the run in `workdir` may become longer, to the length of `config`.

    Raises:
        UserError: bad input.
        TrainingDivergedError: the training cannot go on.
    """
    with RunFolder(workdir) as folder:
        check = functools.partial(folder.check_can_train, extend=extend)
        experiment = create_same_experiment(config, "train", check)
        check_initial_weights(experiment, workdir)
        tell(*(f"note: {sentence}" for sentence in unusual_settings(experiment)))
        extension = config_argument if experiment.uses_extension() else None
        extend_by = (experiment.steps_per_epoch, command) if extend else None
        fingerprint = experiment.dataset.fingerprint
        folder.open_for_training(config, extension, fingerprint, extend_by=extend_by)
        continuations = folder.continuations()
        tell(*described(continuations))
        experiment = continued(experiment, continuations)
        if not train_to_last_step(experiment, folder, command):
            return
        stop = early_stopping.early_stop(experiment, folder)
        tell(*early_stopping.described(stop))
        if folder.is_evaluated(config.evaluation, stop):
            _report_again(workdir)
        else:
            evaluate_and_report(experiment, folder, command)


def evaluate(config: Any, workdir: pathlib.Path, command: str) -> None:
    """Evaluates the run's weights on the test set and writes `results.json` and the report."""
    with RunFolder(workdir) as folder:
        experiment = create_same_experiment(config, "evaluate", folder.check_trained)
        folder.lock()
        experiment = continued(experiment, folder.continuations())
        evaluate_and_report(experiment, folder, command)


def sample(config: Any, workdir: pathlib.Path, command: str) -> None:
    """Draws images from the run's weights, in one process; the data set is not needed.

    `samples.npz` holds `images` in data space and their expectations `expected`, which
    `samples.png` shows.
    """
    del command
    check_configuration(config)
    check_configuration_of(workdir, config)
    if not config.sampling.num_images:
        raise UserError(
            "--mode=sample draws nothing with config.sampling.num_images=0; give the number of "
            "samples, as in --config.sampling.num_images=100"
        )
    with lock(workdir):
        model, params, _ = load_model(config, workdir)
        images, expected = save_samples(model, params, config, workdir)
        with open_atomically(workdir / "samples.npz") as file:
            np.savez_compressed(file, images=images, expected=expected)
        print(f"{len(images)} images in {workdir / 'samples.png'} and {workdir / 'samples.npz'}")


def export(
    config: Any,
    workdir: pathlib.Path,
    command: str,
    dtype: str = "float16",
    licence: str = "",
) -> None:
    """Makes the workdir a folder that `sere_jax.load_pretrained` reads, in one process.

    See `exported_weights`, and `card` for the model card beside them. The data set is not needed.
    """
    del command
    check_configuration(config)
    check_configuration_of(workdir, config)
    with lock(workdir):
        model, params, about = load_model(config, workdir)
        path = exported_weights.write(workdir, params, about, dtype)
        loss = None
        if dtype != "float32":
            tell("measuring what rounding costs")
            loss = loss_by_rounding(model, params, dtype, config)
        write_card(workdir, about, dtype, loss, licence)
        size = path.stat().st_size / 1e6
        print(f"weights of step {about['step']}, {dtype}, in {path} ({size:.1f} MB)")
        if loss:
            print("rounding costs {:.4f} ± {:.4f} nats an image".format(*loss))


def report(config: Any, workdir: pathlib.Path, command: str) -> None:
    """Draws the curves anew and writes `report.html` from the workdir, in one process."""
    del command
    check_configuration_of(workdir, config)
    with lock(workdir):
        save_curves(workdir)
        print(f"report in {write_report(workdir)}")


@done_by_first_process
def _report_again(workdir: pathlib.Path) -> None:
    save_curves(workdir)  # a kill may have come between results and report
    write_report(workdir)
    print(f"{workdir} is complete; see {workdir / 'report.html'}")
