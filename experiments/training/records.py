"""What is logged of a training, and when it has to stop for good."""

import math
from typing import Any

import numpy as np

from experiments.run_folder.folder import RunFolder
from experiments.system.errors import TrainingDivergedError
from experiments.training.evaluation import Elbo, bits_of_noise
from experiments.training.experiment import Experiment
from experiments.training.state import TrainState

# Times the bits of uniform noise; at their start healthy runs need up to 1.1 times as many.
TOO_MANY_BITS = 2.0
_WAY_OUT = (
    "lower config.training.learning_rate or config.training.max_gradient_norm in a new --workdir"
)


def train_record(
    experiment: Experiment, state: TrainState, metrics: Any, steps_per_second: float
) -> dict[str, Any]:
    """Means over the updates of a dispatch, in nats, and the settings of its last one.

    `state` is that after the dispatch, `metrics` are its `StepMetrics` as floats.
    """
    count = metrics.count or math.nan
    step = int(state.step) - 1
    elbo = (metrics.log_likelihood - metrics.kl) / count
    return {
        "objective": metrics.objective / count,
        "elbo": elbo,
        "bits_per_dim": experiment.bits_per_dim(-elbo, "train"),
        "log_likelihood": metrics.log_likelihood / count,
        "kl": metrics.kl / count,
        "gradient_norm": metrics.gradient_norm / count,
        "max_gradient_norm": metrics.max_gradient_norm,
        "clipped_share": metrics.clipped / count,
        "lowest_objective": metrics.lowest_objective,
        "parameter_norm": metrics.parameter_norm,
        "learning_rate": float(experiment.learning_rate(step)),
        "kl_weight": float(experiment.kl_weight(step)),
        "skipped_steps": int(state.skipped_steps),
        "images_per_second": steps_per_second * experiment.config.training.batch_size,
    }


def elbo_record(experiment: Experiment, elbo: Elbo, split: str) -> dict[str, Any]:
    """Means over the images of a split, in nats, and bits/dim."""
    means = elbo.means()
    return means | {"bits_per_dim": experiment.bits_per_dim(-means["elbo"], split)}


def check_convergence(
    experiment: Experiment, folder: RunFolder, state: TrainState, metrics: Any
) -> None:
    """Stops a run that can no longer go on, before its state is saved.

    Raises:
        TrainingDivergedError: too many updates in a row were skipped, or parameters overflowed.
    """
    most_skips = experiment.config.training.max_consecutive_skips
    if int(state.consecutive_skips) >= most_skips:
        reason = f"{most_skips} updates in a row were not finite"
    elif not math.isfinite(metrics.parameter_norm):
        reason = "the norm of the parameters is not finite"
    else:
        return
    steps = folder.saved_steps()
    last = f"the last good checkpoint is at step {steps[-1]}" if steps else "there is no checkpoint"
    raise TrainingDivergedError(
        f"stopped at step {int(state.step)}: {reason} (largest gradient norm "
        f"{metrics.max_gradient_norm:.4g}, parameter norm {metrics.parameter_norm:.4g}); {last}; "
        f"{_WAY_OUT}"
    )


def check_bounds(
    experiment: Experiment,
    folder: RunFolder,
    step: int,
    training_bits: float,
    validation_elbos: np.ndarray,
) -> None:
    """Stops a run whose model has become much worse than uniform noise, before it is saved.

    Args:
        experiment: of the run.
        folder: of the run.
        step: updates so far.
        training_bits: bits/dim of the last dispatch.
        validation_elbos: of each validation image, in nats.

    Raises:
        TrainingDivergedError: `has_diverged` says so of the median validation image.
    """
    validation_bits = experiment.bits_per_dim(-float(np.median(validation_elbos)), "validation")
    of_noise = bits_of_noise(experiment.model.config, experiment.dataset.max_value)
    if not has_diverged(training_bits, validation_bits, of_noise):
        return
    best = folder.best_step()
    kept = "there is no checkpoint that was evaluated before"
    if best is not None:
        kept = f"the best checkpoint, of step {best}, stays, and --mode=evaluate evaluates it"
    raise TrainingDivergedError(
        f"stopped at step {step}: the training has diverged, with {training_bits:.4g} bits/dim in "
        f"the last updates and {validation_bits:.4g} of the median validation image (uniform noise "
        f"has {of_noise:.4g}); {kept}; {_WAY_OUT}"
    )


def has_diverged(training_bits: float, validation_bits: float, of_noise: float) -> bool:
    """Whether both are above `TOO_MANY_BITS` times those of uniform noise, or NaN.

    Single batches may be bad in a run that goes well, and validation images in one that overfits.
    """
    most = TOO_MANY_BITS * of_noise
    return not (training_bits <= most or validation_bits <= most)
