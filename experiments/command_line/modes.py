"""What the command does in each mode: train, evaluate, sample, report, export."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from absl import logging

import sere_jax
from experiments import trained
from experiments.distributed import processes as multihost
from experiments.distributed.devices import replicate
from experiments.distributed.processes import is_first_process, on_every_process, on_first_process
from experiments.reporting import charts, sheets
from experiments.reporting.report import RESULTS_FILE, write_report
from experiments.run_folder import weights
from experiments.run_folder.checkpoints import Checkpoints
from experiments.run_folder.metrics import MetricsLogger, progress_bar, read_metrics
from experiments.run_folder.workdir import (
    check_can_hold,
    check_configuration_of,
    check_same_configuration,
    exclusive,
    record_configuration,
)
from experiments.settings.checks import as_json, check_configuration, differences
from experiments.system.errors import TrainingDivergedError, UserError
from experiments.system.files import open_atomically, write_json_atomically
from experiments.system.git import git_commit
from experiments.system.paths import check_name
from experiments.training import step as training
from experiments.training.evaluation import standard_error
from experiments.training.experiment import Experiment, count_parameters, create_experiment
from sere_jax.partition import create_partition

NUM_PATHS, IMAGES_OF_A_PATH = 5, 10  # of the figure of interpolations

# Where the data are is up to each host.
_FIELDS_OF_ONE_PROCESS = ("data_dir", "download", "path")


@dataclasses.dataclass
class Interruption:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current dispatch."""

    signal_number: int | None = None
    _is_final: bool = False

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._request)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        else:
            self._previous = {}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            # Python drops its own handlers early on its way out; what is ignored stays ignored.
            signal.signal(number, signal.SIG_IGN if self._is_final else handler)

    def is_heeded(self) -> None:
        """Further signals change nothing: the process exits, together with the others.

        A job's processes may be signalled one after the other. One that is through with the
        others must not die of its own signal while the first of them still saves.
        """
        self._is_final = jax.process_count() > 1

    def _request(self, number, frame):
        del frame
        self.signal_number = number


def train(config: Any, workdir: pathlib.Path, command: str) -> None:
    """Trains from the last checkpoint or from the start, then evaluates and reports.

    Args:
        config: of the experiment.
        workdir: folder of the run.
        command: as the user typed it, for `results.json`.

    With several processes the first one alone reads and writes the workdir; in the others
    `checkpoints` is None.

    Raises:
        UserError: bad input.
        TrainingDivergedError: too many updates in a row were not finite.
    """

    # Checked before anything is written, the lock included.
    def check_workdir():
        check_name(workdir)
        check_can_hold(workdir, config)

    experiment = _create_experiment(config, "train", check_workdir)
    if is_first_process():
        for doubt in experiment.doubts():
            print(f"note: {doubt}", file=sys.stderr)
    with contextlib.ExitStack() as resources:

        def open_run():
            if not os.path.isdir(workdir / "checkpoints"):  # False where pathlib would raise
                _initial_params(experiment)  # will be needed
            resources.enter_context(exclusive(workdir))
            record_configuration(workdir, config)
            return resources.enter_context(
                Checkpoints(workdir, keep=config.training.keep_checkpoints)
            )

        checkpoints = on_first_process(open_run)
        if not _train_to_the_end(experiment, workdir, checkpoints, command):
            return
        is_evaluated = on_first_process(lambda: _is_evaluated(experiment, workdir, checkpoints))
        if not multihost.json_of_first_process(is_evaluated):
            _evaluate(experiment, workdir, command)
        elif is_first_process():
            _save_curves(workdir)  # a kill may have come between results and report
            write_report(workdir)
            print(f"{workdir} is complete; see {workdir / 'report.html'}")


def evaluate(config: Any, workdir: pathlib.Path, command: str) -> None:
    """Evaluates the run's weights on the test set and writes `results.json` and the report."""
    experiment = _create_experiment(
        config, "evaluate", lambda: check_configuration_of(workdir, config)
    )
    with contextlib.ExitStack() as resources:
        on_first_process(lambda: resources.enter_context(exclusive(workdir)))
        _evaluate(experiment, workdir, command)


def sample(config: Any, workdir: pathlib.Path, command: str) -> None:
    """Draws images from the run's weights, in one process; the data set is not needed.

    `samples.npz` holds `images` in data space and their expectations `expected`, which
    `samples.png` shows.
    """
    del command
    check_configuration(config)
    check_configuration_of(workdir, config)
    with exclusive(workdir):
        model, params, _ = trained.restore(config, workdir)
        images, expected = _save_samples(model, config.sampling, workdir, params)
        with open_atomically(workdir / "samples.npz") as file:
            np.savez_compressed(file, images=images, expected=expected)
        print(f"{len(images)} images in {workdir / 'samples.png'} and {workdir / 'samples.npz'}")


def export(config: Any, workdir: pathlib.Path, command: str) -> None:
    """Writes the run's weights to one file, in one process; see `weights`.

    The data set is not needed.
    """
    del command
    check_configuration(config)
    check_configuration_of(workdir, config)
    with exclusive(workdir):
        _, params, about = trained.restore(config, workdir)
        path = workdir / weights.WEIGHTS_FILE
        weights.write(path, params, about)
        size = path.stat().st_size / 1e6
        print(f"weights of step {about['step']}, {weights.DTYPE}, in {path} ({size:.1f} MB)")


def report(config: Any, workdir: pathlib.Path, command: str) -> None:
    """Draws the curves anew and writes `report.html` from the workdir, in one process."""
    del command
    check_configuration_of(workdir, config)
    with exclusive(workdir):
        _save_curves(workdir)
        print(f"report in {write_report(workdir)}")


def _create_experiment(config, mode, check_workdir):
    """`create_experiment` in all processes, which have to agree on what they are about to do.

    The first one calls `check_workdir` before, as the data set may have to be downloaded.
    """

    def describe_configuration(ours, expected):
        ignored = tuple(f"config.dataset.{name}" for name in _FIELDS_OF_ONE_PROCESS)
        return "; ".join(differences(ours, expected, ignored)[:5])

    def describe_data(ours, expected):
        return "" if ours == expected else f"fingerprint {ours} instead of {expected}"

    multihost.check_same(
        "the settings of this process",
        lambda: {"mode": mode, "config": as_json(config)},
        describe_configuration,
    )
    on_first_process(check_workdir)

    def create():
        return create_experiment(config, to_train=mode == "train")

    # Where the hosts share a file system, only the first one prepares and caches the data.
    experiment = on_first_process(create)
    experiment = on_every_process(lambda: experiment or create())
    multihost.check_same(
        "the images of this process", lambda: experiment.dataset.fingerprint, describe_data
    )
    return experiment


def _train_to_the_end(experiment: Experiment, workdir, checkpoints, command) -> bool:
    """Returns whether the last step was reached; False after a signal."""
    config = experiment.config
    state, train_seconds = _resume(experiment, workdir, checkpoints)
    step = int(state.step)
    if step >= experiment.total_steps:
        return True
    if is_first_process():
        for line in experiment.summary():
            print(line, file=sys.stderr)
    dispatch = experiment.create_train_dispatch()
    state = replicate(state)
    images = replicate(experiment.dataset.train)
    validation = replicate(experiment.dataset.validation)
    evaluate_every = experiment.interval_in_steps("training", "evaluate_every")
    checkpoint_every = experiment.interval_in_steps("training", "checkpoint_every")
    test_elbo_every = experiment.total_steps + 1
    if config.evaluation.test_elbo_every:
        test_elbo_every = experiment.interval_in_steps("evaluation", "test_elbo_every")
        test_images = replicate(experiment.test_images())
    boundaries = (
        experiment.steps_per_epoch,
        config.training.steps_per_dispatch,
        evaluate_every,
        checkpoint_every,
        test_elbo_every,
        experiment.total_steps,
    )

    commit = git_commit()

    def save(validation_elbo):
        if not is_first_process():
            return
        progress = {
            "train_seconds": train_seconds,
            "dataset_fingerprint": experiment.dataset.fingerprint,
            "config": as_json(config),
            "command": command,
            "git_commit": commit,
        }
        checkpoints.save(state, progress, validation_elbo)

    with (
        on_every_process(
            lambda: MetricsLogger(workdir, resume_step=step, write=is_first_process())
        ) as logger,
        Interruption() as interruption,
        progress_bar(
            experiment.total_steps, step, workdir.name, disable=not is_first_process()
        ) as bar,
    ):
        bar.set_postfix_str("compiling")
        while step < experiment.total_steps:
            started = time.perf_counter()
            num_steps = min(boundary - step % boundary for boundary in boundaries)
            state, metrics = dispatch(state, images, num_steps)
            metrics = jax.tree.map(float, metrics)
            if is_first_process():
                checkpoints.check()
            seconds = time.perf_counter() - started
            train_seconds += seconds
            step += num_steps
            epoch = step / experiment.steps_per_epoch
            record = _train_record(experiment, state, metrics, num_steps / seconds)
            logger.write(step, epoch, "train", record)
            bar.update(num_steps)
            bar.set_postfix_str(
                f"elbo {record['elbo']:.2f}, {record['bits_per_dim']:.3f} bits/dim, "
                f"{record['images_per_second']:.0f} images/s",
                refresh=False,
            )
            _check_convergence(experiment, checkpoints, state, metrics)
            is_last = step == experiment.total_steps
            validation_elbo = None
            if len(validation) and (is_last or step % evaluate_every == 0):
                elbo = experiment.evaluator.elbo(state.ema_params, validation)
                record = _elbo_record(experiment, elbo, "validation")
                logger.write(step, epoch, "validation", record)
                validation_elbo = record["elbo"]
            if step % test_elbo_every == 0:
                elbo = experiment.evaluator.elbo(state.ema_params, test_images)
                logger.write(step, epoch, "test", _elbo_record(experiment, elbo, "test"))
                on_first_process(functools.partial(_save_elbo, workdir, step, elbo))
            # Read once: it may come at any moment, and to any of the processes.
            signal_number = multihost.any_signal(interruption.signal_number)
            if is_last or step % checkpoint_every == 0:
                save(validation_elbo)
            elif signal_number:  # does not compete for the best: else the signal would choose it
                save(None)
            if signal_number:
                interruption.is_heeded()
                on_first_process(lambda: checkpoints.wait())
                bar.close()
                if is_first_process():
                    name = signal.Signals(signal_number).name
                    print(
                        f"{name}: saved at step {step} of {experiment.total_steps}; "
                        "the same command resumes",
                        file=sys.stderr,
                    )
                return False
        on_first_process(lambda: checkpoints.wait())
    return True


def _resume(experiment, workdir, checkpoints):
    """State and seconds of training so far, from the latest checkpoint or from the start."""

    def restore():
        restored = checkpoints.restore_latest(experiment.state_template())
        if restored is None:
            _check_nothing_is_lost(experiment, workdir)
            state, params = experiment.init_state(), _initial_params(experiment)
            if params is not None:
                state = state.replace(params=params, ema_params=params)
            return state, {"train_seconds": 0.0}
        state, progress = restored
        _check_same_data(experiment, workdir, progress)
        if "config" in progress:  # earlier versions did not record it
            subject = f"checkpoint {checkpoints.directory / str(int(state.step))} is of a run"
            check_same_configuration(subject, progress["config"], experiment.config)
        logging.info("resuming %s at step %d", workdir, int(state.step))
        return restored

    state, progress = _restore_on_first_process(experiment.state_template(), restore)
    return state, progress["train_seconds"]


def _initial_params(experiment):
    """The parameters of `config.training.initial_weights`; None, if it names none."""
    source = experiment.config.training.initial_weights
    if not source:
        return None
    try:
        model, params = trained.load(source)
    except (UserError, sere_jax.ConfigError) as error:
        raise UserError(f"config.training.initial_weights={source!r}: {error}") from error
    ours, theirs = map(dataclasses.asdict, (experiment.model.config, model.config))
    changed = differences(ours, theirs, ignored=("dropout",))
    if changed:
        raise UserError(
            f"config.training.initial_weights={source!r} are those of another model "
            f"({'; '.join(changed[:5])}); choose the same model, or other weights"
        )
    return jax.tree.map(np.asarray, params)


def _restore_on_first_process(template, restore):
    """The arrays, like those of `template`, and JSON that `restore` returns, in all processes."""
    arrays, record = on_first_process(restore) or (template, None)
    return multihost.arrays_of_first_process(arrays), multihost.json_of_first_process(record)


def _check_nothing_is_lost(experiment, workdir):
    """A run without a checkpoint starts over, unless it must have had one."""
    logged = max((record["step"] for record in read_metrics(workdir)), default=0)
    # The second save waits for the first one, and comes before the records of later steps.
    second_save = 2 * experiment.interval_in_steps("training", "checkpoint_every")
    if logged > second_save or (workdir / RESULTS_FILE).exists():
        raise UserError(
            f"--workdir={workdir} was trained to step {logged} but has no checkpoint any more; put "
            "its folder checkpoints/ back, or choose another --workdir"
        )


def _check_same_data(experiment, workdir, progress):
    recorded = progress["dataset_fingerprint"]
    if recorded != experiment.dataset.fingerprint:
        raise UserError(
            f"the images of {experiment.config.dataset.name!r} are not those that {workdir} was "
            f"trained on (fingerprint {experiment.dataset.fingerprint}, then {recorded}); "
            "restore them, or choose another --workdir"
        )


def _train_record(experiment, state, metrics: training.StepMetrics, steps_per_second):
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


def _elbo_record(experiment, elbo, split):
    means = elbo.means()
    return means | {"bits_per_dim": experiment.bits_per_dim(-means["elbo"], split)}


def _save_elbo(workdir, step, elbo):
    with open_atomically(workdir / f"test_elbo_{step}.npz") as file:
        np.savez_compressed(file, elbo=np.float32(elbo.per_image))


def _check_convergence(experiment, checkpoints, state, metrics):
    """Stops a run that can no longer go on, before it is saved."""
    most_skips = experiment.config.training.max_consecutive_skips
    if int(state.consecutive_skips) >= most_skips:
        reason = f"{most_skips} updates in a row were not finite"
    elif not math.isfinite(metrics.parameter_norm):
        reason = "the norm of the parameters is not finite"
    else:
        return

    def saved_steps():
        checkpoints.wait()
        return checkpoints.steps()

    steps = multihost.json_of_first_process(on_first_process(saved_steps))
    last = f"the last good checkpoint is at step {steps[-1]}" if steps else "there is no checkpoint"
    raise TrainingDivergedError(
        f"stopped at step {int(state.step)}: {reason} (largest gradient norm "
        f"{metrics.max_gradient_norm:.4g}, parameter norm {metrics.parameter_norm:.4g}); {last}; "
        "lower config.training.learning_rate or config.training.max_gradient_norm in a new "
        "--workdir"
    )


def _is_evaluated(experiment, workdir, checkpoints):
    """Whether `results.json` is of the weights and the evaluation that are asked for."""
    evaluation = experiment.config.evaluation
    path = workdir / RESULTS_FILE
    if not path.exists():
        return False
    try:
        results = json.loads(path.read_bytes())
        step = weights.choose_step(checkpoints, evaluation.checkpoint)
        return results["evaluation"] == evaluation.to_dict() and results["step"] == step
    except (ValueError, TypeError, KeyError):  # damaged: evaluated anew
        return False


def _evaluate(experiment, workdir, command):
    template = experiment.state_template()
    averages, about = _restore_on_first_process(
        template.params,
        lambda: weights.load(workdir, template, experiment.config.evaluation.checkpoint),
    )
    if is_first_process():
        _tell_of_other_images(experiment, workdir, about)
    params = replicate(averages)
    images = replicate(experiment.test_images())
    elbo = experiment.evaluator.elbo(params, images)
    on_first_process(lambda: _save_pictures(experiment, workdir, averages, elbo.kl))
    with progress_bar(
        len(images),
        0,
        "importance sampling",
        disable=not is_first_process(),
        unit=" images",
    ) as bar:

        def advance(num_images, mean):
            bar.update(num_images)
            bar.set_postfix_str(f"log p(x) {mean:.2f}", refresh=False)

        likelihood = experiment.evaluator.log_likelihood(params, images, advance)
    kl_per_layer = elbo.means()["kl_per_layer"]
    num_params = count_parameters(averages)
    on_first_process(
        lambda: _save_results(
            experiment, workdir, command, num_params, about, kl_per_layer, *likelihood
        )
    )


def _tell_of_other_images(experiment, workdir, about):
    dataset = experiment.dataset
    recorded = about.get("dataset_fingerprint", dataset.fingerprint)
    if recorded != dataset.fingerprint:
        print(
            f"note: the images of {experiment.config.dataset.name!r} are not those that {workdir} "
            f"was trained on, or not in that order (fingerprint {dataset.fingerprint}, then "
            f"{recorded}); make sure that no training images are in the test set",
            file=sys.stderr,
        )


def _save_results(
    experiment, workdir, command, num_params, about, kl_per_layer, log_likelihood, elbos
):
    config = experiment.config
    nll, elbo = -float(log_likelihood.mean()), float(elbos.mean())
    commit = git_commit()
    results = {
        "nll": nll,
        "nll_stderr": standard_error(log_likelihood),
        "elbo": elbo,
        "elbo_stderr": standard_error(elbos),
        "bits_per_dim": experiment.bits_per_dim(nll, "test"),
        "elbo_bits_per_dim": experiment.bits_per_dim(-elbo, "test"),
        "kl_per_layer": kl_per_layer,
        "num_importance_samples": config.evaluation.num_importance_samples,
        "num_examples": len(log_likelihood),
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
        "evaluation_git_commit": commit,
        "evaluation_command": command,
    }
    with open_atomically(workdir / "test_images.npz") as file:
        np.savez_compressed(file, elbo=elbos, log_likelihood=log_likelihood)
    write_json_atomically(workdir / RESULTS_FILE, results)
    _save_curves(workdir)
    write_report(workdir)
    print(
        f"test: -log p(x) {nll:.2f} ± {results['nll_stderr']:.2f} nats "
        f"(K = {results['num_importance_samples']}, {len(log_likelihood)} images), "
        f"ELBO {elbo:.2f} nats, {results['bits_per_dim']:.4f} bits/dim; "
        f"report in {workdir / 'report.html'}"
    )


def _save_pictures(experiment, workdir, params, kl):
    _save_samples(experiment.model, experiment.config.sampling, workdir, params)
    if not experiment.model.config.has_latents:
        return
    charts.save_kl_per_layer(
        kl.mean(axis=0), workdir / "kl_per_layer.png", history=_kl_history(workdir)
    )
    model = experiment.model
    images = experiment.test_images()[:16]
    x, keys = experiment.evaluator.to_data_space(images, np.arange(len(images)))

    def reconstruct(**options):
        images = sere_jax.reconstruct(model, params, x, keys, expected=True, **options)
        return _pixels(model, images)

    versions = {"original": _pixels(model, x), "reconstruction": reconstruct()}
    sheets.save_comparison(versions, workdir / "reconstructions.png")
    if model.generates_blocks and model.config.couple_data:
        versions["without δγ"] = reconstruct(residual=False)
        sheets.save_comparison(versions, workdir / "residual_layers.png")
    _save_interpolation(experiment, workdir, params, x)


def _save_interpolation(experiment, workdir, params, x):
    """A row for each of some pairs of images, from the first one's codes to the second one's."""
    key = jax.random.key(experiment.config.sampling.seed)
    paths = [
        sere_jax.interpolate(experiment.model, params, start, end, key, IMAGES_OF_A_PATH)
        for start, end in zip(x[: 2 * NUM_PATHS : 2], x[1 : 2 * NUM_PATHS : 2], strict=False)
    ]
    if paths:
        pictures = _pixels(experiment.model, np.concatenate(paths))
        sheets.save_image_grid(
            pictures, workdir / "interpolation.png", num_columns=IMAGES_OF_A_PATH
        )


def _save_samples(model, sampling, workdir, params):
    """Returns the samples and their expectations, which `samples.png` shows as most papers do."""
    key = jax.random.key(sampling.seed)
    images, expected = (
        np.asarray(sere_jax.sample(model, params, key, sampling.num_images, expected=as_expected))
        for as_expected in (False, True)
    )
    pictures = _pixels(model, expected)
    sheets.save_image_grid(pictures, workdir / "samples.png")
    if model.generates_blocks:
        layer_of_pixel = create_partition(model.config).layer_of_pixel
        sheets.save_build_up(pictures[:8], layer_of_pixel, workdir / "build_up.png")
    return images, expected


def _pixels(model, x):
    """For pictures: of other numbers of channels than 1 and 3 the first three, or the first."""
    pixels = np.asarray(sere_jax.to_pixels(model, jax.numpy.asarray(x, np.float32)))
    return pixels[..., : 3 if pixels.shape[-1] >= 3 else 1]


def _save_curves(workdir):
    records = read_metrics(workdir)
    if records:
        charts.save_learning_curves(records, workdir / "learning_curves.png")


def _kl_history(workdir):
    return [
        (record["epoch"], record["kl_per_layer"])
        for record in read_metrics(workdir)
        if record["split"] == "validation"
    ]
