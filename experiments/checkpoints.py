"""Checkpoints of a run: asynchronous, atomic, the latest few and the best."""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from experiments.errors import UserError
from experiments.training import TrainState

METRIC = "elbo"


class Checkpoints:
    """The folder `checkpoints/` of a workdir.

    Arrays are saved as host arrays, so that any number of devices can resume them. With several
    processes the first one alone has it; it neither needs the others nor waits for them.

    Args:
        workdir: the run's folder.
        keep: how many of the latest checkpoints stay; the best one stays besides.
        read_only: open for reading; nothing is created or deleted.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2, read_only: bool = False):
        self.directory = (workdir / "checkpoints").absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"there is no checkpoint in {workdir}; train first (--mode=train)")
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics[METRIC],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics[METRIC],
                create=False,  # by orbax: not supported with active_processes
                read_only=read_only,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}
                ),
            ),
        )

    def save(
        self,
        state: TrainState,
        progress: dict[str, Any],
        validation_elbo: float | None = None,
    ) -> None:
        """Starts saving `state`; training may go on meanwhile.

        Args:
            state: the state after `state.step` updates.
            progress: JSON values to keep beside it.
            validation_elbo: nats; checkpoints with one compete for the best.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(jax.tree.map(np.asarray, state)),
                progress=ocp.args.JsonSave(progress),
            ),
            metrics=None if validation_elbo is None else {METRIC: validation_elbo},
        )

    def wait(self) -> None:
        """Returns when the last `save` is on the disk."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest validation ELBO, or None."""
        elbos = {step: self.validation_elbo(step) for step in self.steps()}
        known = {step: elbo for step, elbo in elbos.items() if elbo is not None}
        return max(known, key=lambda step: known[step]) if known else None

    def validation_elbo(self, step: int) -> float | None:
        """The validation ELBO in nats that was saved with a checkpoint, or None."""
        metrics = self._manager.metrics(step)
        return metrics[METRIC] if metrics else None

    def restore(self, template: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state of one checkpoint, as host arrays, and its progress.

        Args:
            template: a state of the same structure and shapes.
            step: one of `steps()`.

        Raises:
            UserError: it cannot be read.
        """
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.map(np.asarray, template)),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be restored: {reason}"
            ) from error
        for (path, expected), (_, found) in zip(
            jax.tree.leaves_with_path(template),
            jax.tree.leaves_with_path(restored.state),
            strict=True,
        ):
            if np.shape(expected) != np.shape(found):
                raise UserError(
                    f"checkpoint {self.directory / str(step)} belongs to another model: "
                    f"{jax.tree_util.keystr(path)} has the shape {np.shape(found)} instead of "
                    f"{np.shape(expected)}; choose another --workdir"
                )
        return restored.state, restored.progress

    def restore_latest(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest readable checkpoint, or None where there is none at all.

        A damaged one is set aside (renamed, not deleted) and the one before it is taken.

        Raises:
            UserError: there are checkpoints and none of them can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                restored = self.restore(template, step)
            except UserError as error:
                logging.warning("%s; trying the one before", error)
                continue
            for damaged in (other for other in steps if other > step):
                shutil.move(
                    self.directory / str(damaged), self.directory.parent / f"damaged-{damaged}"
                )
            self._manager.reload()
            return restored
        if steps:
            raise UserError(
                f"none of the checkpoints {steps} in {self.directory} can be restored; "
                "they belong to another model or are damaged: choose another --workdir"
            )
        return None

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()
