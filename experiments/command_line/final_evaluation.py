"""Results of a run on the test set, or on the validation images, and the report of it."""

import contextlib
from typing import Any

import numpy as np

from experiments.distributed.devices import replicate
from experiments.distributed.processes import done_by_first_process, is_first_process, tell
from experiments.reporting.model_pictures import save_curves, save_pictures
from experiments.reporting.report import write_report
from experiments.run_folder import exported_weights
from experiments.run_folder.folder import RunFolder
from experiments.system import computer
from experiments.system.errors import UserError
from experiments.system.progress import progress_bar
from experiments.training.early_stopping import early_stop
from experiments.training.evaluation import standard_error
from experiments.training.experiment import Experiment
from experiments.training.state import count_parameters


def evaluate_and_report(experiment: Experiment, folder: RunFolder, command: str) -> None:
    """Evaluates the run's weights as it asks for; writes results, pictures and the report."""
    which, split = experiment.config.evaluation.checkpoint, experiment.config.evaluation.split
    averages, about = folder.load_weights(experiment.state_template(), which)
    _tell_of_other_images(experiment, folder, about)
    _tell_of_an_older_export(folder, averages, about)
    params = replicate(averages)
    images, labels = experiment.place(experiment.evaluated_images()), experiment.evaluated_labels()
    elbo = experiment.evaluator.elbo(params, images, split, labels)
    tell("drawing pictures")
    done_by_first_process(save_pictures)(experiment, averages, elbo.kl, folder.path)
    log_likelihood, elbos = _log_likelihood(experiment, params, images, labels)
    results = {
        **_likelihoods(experiment, log_likelihood, elbos),
        **_by_class(experiment, log_likelihood, elbos),
        "kl_per_layer": elbo.means()["kl_per_layer"],
        "num_importance_samples": experiment.config.evaluation.num_importance_samples,
        "num_examples": len(log_likelihood),
        "split": split,
        **_origin(experiment, about, count_parameters(averages), command),
    }
    if continuations := folder.continuations():
        results["continuations"] = continuations
    if stop := early_stop(experiment, folder):
        results["stopped_early"] = stop
    folder.save_arrays(f"{split}_images", elbo=elbos, log_likelihood=log_likelihood)
    folder.show_in_tensorboard(experiment.config, results)
    folder.save_results(results)  # after which a relaunch does nothing of this again
    _report(folder, results)


def _tell_of_other_images(experiment: Experiment, folder: RunFolder, about: dict) -> None:
    dataset = experiment.dataset
    recorded = about.get("dataset_fingerprint", dataset.fingerprint)
    if recorded != dataset.fingerprint:
        tell(
            f"note: the images of {experiment.config.dataset.name!r} are not those that "
            f"{folder.path} was trained on, or not in that order (their fingerprint is "
            f"{dataset.fingerprint}; in the training it was {recorded}); make sure that no "
            "training images are in the test set"
        )


@done_by_first_process
def _tell_of_an_older_export(folder: RunFolder, averages: Any, about: dict) -> None:
    """Of a run that went on after its weights were exported."""
    path = exported_weights.find(folder.path)
    if path is None:
        return
    with contextlib.suppress(UserError):  # a damaged one is told by what reads it
        step = exported_weights.read(path, averages)[1]["step"]
        if step != about["step"]:
            tell(
                f"note: {path} has the weights of step {step}, those evaluated are of step "
                f"{about['step']}; --mode=export writes it anew"
            )


def _log_likelihood(
    experiment: Experiment, params: Any, images: Any, labels: Any
) -> tuple[np.ndarray, np.ndarray]:
    """See `Evaluator.log_likelihood`; tells how far it is."""
    with progress_bar(
        len(images), 0, "importance sampling", disable=not is_first_process(), unit=" images"
    ) as bar:

        def advance(num_images, mean):
            bar.update(num_images)
            bar.set_postfix_str(f"log p(x) {mean:.2f}", refresh=False)

        split = experiment.config.evaluation.split
        return experiment.evaluator.log_likelihood(
            params, images, advance, split=split, labels=labels
        )


def _likelihoods(
    experiment: Experiment, log_likelihood: np.ndarray, elbos: np.ndarray
) -> dict[str, float]:
    """In nats, with standard errors, and in bits/dim."""
    nll, elbo = -float(log_likelihood.mean()), float(elbos.mean())
    return {
        "nll": nll,
        "nll_stderr": standard_error(log_likelihood),
        "elbo": elbo,
        "elbo_stderr": standard_error(elbos),
        "bits_per_dim": experiment.bits_per_dim(nll, "evaluated"),
        "elbo_bits_per_dim": experiment.bits_per_dim(-elbo, "evaluated"),
    }


def _by_class(
    experiment: Experiment, log_likelihood: np.ndarray, elbos: np.ndarray
) -> dict[str, list[float | None]]:
    """Means over the images of each class in nats, None of a class without any."""
    labels, classes = experiment.evaluated_labels(), experiment.dataset.labels
    if labels is None or classes is None:
        return {}

    def means(values: np.ndarray) -> list[float | None]:
        parts = [values[labels == label] for label in range(classes.num_classes)]
        return [float(part.mean()) if len(part) else None for part in parts]

    return {"nll_by_class": means(-log_likelihood), "elbo_by_class": means(elbos)}


def _origin(experiment: Experiment, about: dict, num_params: int, command: str) -> dict[str, Any]:
    """Which weights were evaluated, how they were trained, and by which commands."""
    config, commit = experiment.config, experiment.git_commit
    return {
        "step": about["step"],
        "epoch": about["step"] / experiment.steps_per_epoch,
        "num_params": num_params,
        "train_seconds": about["train_seconds"],
        "dataset": config.dataset.name,
        "validation_elbo": about["validation_elbo"],
        "paper_nll": config.paper.nll,
        "evaluation": config.evaluation.to_dict(),
        # Earlier versions recorded neither with the weights.
        "git_commit": about.get("git_commit", commit),
        "command": about.get("command", command),
        "computer": about.get("computer"),
        "evaluation_git_commit": commit,
        "evaluation_command": command,
        "evaluation_computer": computer.describe(),
    }


@done_by_first_process
def _report(folder: RunFolder, results: dict[str, Any]) -> None:
    save_curves(folder.path)
    write_report(folder.path)
    print(
        f"{results['split']}: -log p(x) {results['nll']:.2f} ± {results['nll_stderr']:.2f} nats "
        f"(K = {results['num_importance_samples']}, {results['num_examples']} images), "
        f"ELBO {results['elbo']:.2f} nats, {results['bits_per_dim']:.4f} bits/dim; "
        f"report in {folder.path / 'report.html'}"
    )
