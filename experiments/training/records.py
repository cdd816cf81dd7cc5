"""What is logged of a training, and when it has to stop for good."""

import math
from typing import Any

from experiments.run_folder.folder import RunFolder
from experiments.system.errors import TrainingDivergedError
from experiments.training.evaluation import Elbo
from experiments.training.experiment import Experiment
from experiments.training.state import TrainState


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
        "lower config.training.learning_rate or config.training.max_gradient_norm in a new "
        "--workdir"
    )
