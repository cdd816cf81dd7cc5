"""Checkpoints of a run: asynchronous, atomic, the latest few and the best."""

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from experiments.system.error_codes import error_code, refusal_of_the_system
from experiments.system.errors import UserError
from experiments.system.paths import check_name

CHECKPOINTS = "checkpoints"
METRIC = "elbo"
CHECKSUM = "checksum"


class _Folder(type(epath.Path())):  # type: ignore[misc]
    """A folder for orbax that may be called anything.

    Orbax merges the arrays that it finds with `glob`, and etils takes the folder's own path for a
    part of the pattern: in `lr[1e-3]` it would find none, and lose them without a word.
    """

    def glob(self, pattern: str) -> Iterator["_Folder"]:
        return (self / path.name for path in pathlib.Path(self).glob(pattern))


class Checkpoints(contextlib.AbstractContextManager):
    """The folder `checkpoints/` of a workdir.

    Arrays are saved as host arrays, so that any number of devices can resume them. With several
    processes the first one alone has it; it neither needs the others nor waits for them. Orbax does
    not notice a flipped bit in an array's file: each checkpoint holds a checksum of all that is
    saved. A state is a `TrainState`.

    Args:
        workdir: the run's folder.
        keep: how many of the latest checkpoints stay; the best one stays besides.
        read_only: open for reading; nothing is created or deleted.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2, read_only: bool = False):
        check_name(workdir)
        self.directory = (workdir / CHECKPOINTS).absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"there is no checkpoint in {workdir}; train first (--mode=train)")
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            for unfinished in self.directory.glob("*.orbax-checkpoint-tmp"):  # left by a kill
                shutil.rmtree(unfinished)
        self._identity = self._current_identity()
        self._check_metrics_files(set_aside=not read_only)
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
        with _no_warnings():  # that what is opened for reading is read only
            self._manager = ocp.CheckpointManager(
                _Folder(self.directory),
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
        state: Any,
        progress: dict[str, Any],
        validation_elbo: float | None = None,
    ) -> None:
        """Starts saving `state`; training may go on meanwhile.

        Args:
            state: the state after `state.step` updates.
            progress: JSON values to keep beside it.
            validation_elbo: nats; checkpoints with a finite one compete for the best.

        Raises:
            OSError: this checkpoint or the one before could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # Orbax would create it, in a workdir that is no more, as the save before may have done.
        if self._current_identity() != self._identity:
            raise FileNotFoundError(errno.ENOENT, "deleted during the run", str(self.directory))
        if validation_elbo is not None and not math.isfinite(validation_elbo):
            validation_elbo = None
        arrays = jax.tree.map(np.asarray, state)
        checksum = _checksum(step, arrays, progress, validation_elbo)
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    progress=ocp.args.JsonSave({**progress, CHECKSUM: checksum}),
                ),
                metrics=None if validation_elbo is None else {METRIC: validation_elbo},
            )

    def raise_save_errors(self) -> None:
        """Returns at once; raises the OSError of the last `save` if it has failed meanwhile."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the last `save` is on the disk.

        Raises:
            OSError: it could not be written.
        """
        with self._writing():
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

    def choose(self, which: str) -> int | None:
        """The step of "best" (the last, if there was no validation) or "last"; None: no steps."""
        best = self.best_step() if which == "best" else None
        return best or max(self.steps(), default=None)

    def newest_progress(self) -> dict[str, Any] | None:
        """The progress of the newest checkpoint; None where there is none or it is damaged."""
        step = max(self.steps(), default=None)
        try:
            args = ocp.args.Composite(progress=ocp.args.JsonRestore())
            return None if step is None else self._manager.restore(step, args=args).progress
        except Exception:  # `restore_latest` says what is wrong with it
            return None

    def restore(self, template: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """The state of one checkpoint, as host arrays, and its progress.

        Args:
            template: a state of the same structure and shapes.
            step: one of `steps()`.

        Raises:
            UserError: it cannot be read.
            OSError: the system refuses to read it, whole or not.
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
            if number := refusal_of_the_system(error):
                raise OSError(number, os.strerror(number), str(self.directory)) from error
            if difference := self._other_parameters(step, template):
                raise UserError(
                    f"checkpoint {self.directory / str(step)} belongs to another model: "
                    f"{difference}; choose another --workdir, or the version that trained it"
                ) from error
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be restored: {reason}; "
                "move it out of that folder to go on with the others"
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
        progress = dict(restored.progress)
        recorded = progress.pop(CHECKSUM, None)  # earlier versions did not record it
        found = _checksum(step, restored.state, progress, self.validation_elbo(step))
        if recorded is not None and recorded != found:
            raise UserError(
                f"checkpoint {self.directory / str(step)} is damaged: its checksum is {found} "
                f"instead of {recorded}; move it out of that folder to go on with the others"
            )
        return restored.state, progress

    def restore_latest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest readable checkpoint, or None where there is none at all.

        A damaged one is set aside (renamed, not deleted) and the one before it is taken.

        Raises:
            UserError: there are checkpoints and none of them can be read.
        """
        steps = self.steps()
        damaged: dict[int, UserError] = {}
        for step in reversed(steps):
            try:
                restored = self.restore(template, step)
            except UserError as error:
                damaged[step] = error
                continue
            for damaged_step, reason in damaged.items():
                self._set_aside(damaged_step, reason)
            self._manager.reload()
            return restored
        if steps:
            raise UserError(
                f"none of the checkpoints {steps} in {self.directory} can be restored "
                f"({damaged[steps[-1]]}); they belong to another model or are damaged: choose "
                "another --workdir"
            )
        set_aside = sorted(path.name for path in self.directory.parent.glob("damaged-*"))
        if set_aside:
            raise UserError(
                f"there is no checkpoint in {self.directory} but those that were set aside as "
                f"damaged ({', '.join(set_aside)}); choose another --workdir"
            )
        return None

    def _other_parameters(self, step: int, template: Any) -> str:
        """Which parameter either the checkpoint or the model lacks; "" where that is not known."""
        with ocp.StandardCheckpointer() as checkpointer, _no_warnings():
            try:
                folder = _Folder(self.directory / str(step) / "state")
                saved = checkpointer.metadata(folder).item_metadata.tree["params"]
            except Exception:  # damaged
                return ""
        found, expected = _names(saved), _names(template.params)
        if missing := expected - found:
            return f"it lacks {min(missing)}"
        return f"it has {min(found - expected)} besides" if found > expected else ""

    def _current_identity(self) -> tuple[int, int] | None:
        """What tells the folder from another one of the same name; None where there is none."""
        try:
            status = self.directory.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _check_metrics_files(self, set_aside: bool) -> None:
        """Orbax reads the metrics of all checkpoints at once and stops at one that is damaged."""
        for path in sorted(self.directory.glob("*/metrics/metrics")):
            step = path.parents[1].name
            if not step.isdecimal():
                continue
            try:
                float(json.loads(path.read_bytes())[METRIC])
            except (ValueError, TypeError, KeyError) as error:
                damage = UserError(f"checkpoint {path.parents[1]} is damaged: {path} is not whole")
                if not set_aside:
                    raise damage from error
                self._set_aside(int(step), damage)

    def _set_aside(self, step: int, reason: UserError) -> None:
        """Moves a checkpoint out of the folder, to a name that is free."""
        workdir = self.directory.parent
        names = itertools.chain(
            [f"damaged-{step}"], (f"damaged-{step}-{i}" for i in itertools.count(2))
        )
        name = next(name for name in names if not (workdir / name).exists())
        (self.directory / str(step)).rename(workdir / name)
        message = " ".join(str(reason).split())
        print(f"warning: {message}. It is set aside as {workdir / name}", file=sys.stderr)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns the ValueErrors of tensorstore into the OSErrors that they stand for."""
        try:
            yield
        except ValueError as error:
            message = str(error)
            if not re.match(r"[A-Z_]+: ", message):  # not the status of a file operation
                raise
            missing = message.startswith("NOT_FOUND")
            number = error_code(error) or (errno.ENOENT if missing else errno.EIO)
            raise OSError(number, os.strerror(number), str(self.directory)) from error

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        with self._writing():
            self._manager.close()

    def __exit__(self, *_) -> None:
        self.close()


def _names(tree: Any) -> set[str]:
    paths = (path for path, _ in jax.tree.leaves_with_path(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path in paths}


def _checksum(
    step: int, state: Any, progress: dict[str, Any], validation_elbo: float | None
) -> int:
    """CRC-32 of all that a checkpoint holds; `step` is the name of its folder."""
    checksum = zlib.crc32(json.dumps([step, progress, validation_elbo], sort_keys=True).encode())
    for leaf in jax.tree.leaves(state):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
    return checksum


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)
