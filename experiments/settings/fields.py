"""Every field of an experiment's configuration; those of `config.model` are `ModelConfig`'s.

Each is declared once, with its default, its meaning and its rule (`sere_jax.rules`).
"""

import dataclasses
from typing import Any

from experiments.settings.durations import DURATION, INTERVAL, INTERVAL_OR_NONE
from sere_jax.config import ModelConfig
from sere_jax.rules import (
    BELOW_ONE,
    BOOLEAN,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    PRECISIONS,
    Rule,
    Setting,
    integer,
    is_number,
    one_of,
    setting,
    settings_of,
)

SEED = integer(0, bits=32)
TEXT = Rule("a string", lambda v: isinstance(v, str))
FRACTION = Rule("a number from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1)
CONDITIONS = ("affine", "label")
CONDITION = Rule("'' (none), affine or label", lambda v: v in ("", *CONDITIONS), CONDITIONS)
NUMBER_OR_NONE = Rule("a number or None", lambda v: v is None or is_number(v))
SINK_NAMES = ("csv", "wandb", "mlflow")
SINKS = Rule(
    f"'' (none), or any of {', '.join(SINK_NAMES)}, with commas between",
    lambda v: (
        isinstance(v, str) and (not v or set(SINK_NAMES) >= {n.strip() for n in v.split(",")})
    ),
)
VALIDATION_SIZE = Rule(
    "a number of examples above 0, or a fraction between 0 and 1",
    lambda v: is_number(v) and v > 0 and (v < 1 or float(v).is_integer()),
)


@dataclasses.dataclass(frozen=True)
class General:
    """Fields that belong to no section."""

    seed: int = setting(0, "Seed of parameters, data order and noise.", SEED)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and what is done to them."""

    name: str = setting(
        "digits", "`digits`, `photos`, `npz`, `folder`, or an image data set of TFDS.", TEXT
    )
    data_dir: str = setting(
        "", "Where TFDS data sets are; else TFDS_DATA_DIR, else TFDS' default.", TEXT
    )
    path: str = setting(
        "", "Arrays of `npz` (a file, or a folder of `.npy`), or the folder of `folder`.", TEXT
    )
    bad_files: str = setting(
        "refuse",
        "What `folder` does with a file that is no image it can read: stop, or leave it out and "
        "name it.",
        one_of("refuse", "skip"),
    )
    placement: str = setting(
        "auto",
        "Where training images are: all on each device, or streamed, the images of a dispatch at a "
        "time; `auto` streams what exceeds half of a device's memory, on CPUs 1 GB. It changes no "
        "bit of a run.",
        one_of("auto", "device", "stream"),
    )
    download: bool = setting(True, "Prepare a TFDS data set that is not there yet.", BOOLEAN)
    validation_size: float = setting(
        0.1, "How many of the last training examples are held out.", VALIDATION_SIZE
    )
    num_train_examples: int = setting(0, "Use at most so many, the first ones; 0: all.", NATURAL)
    image_size: int = setting(32, "Side of the patches of `photos`, in pixels.", POSITIVE_INT)
    shrink: int = setting(
        1, "n, images of TFDS become means of n x n of their pixels; 1: as they are.", POSITIVE_INT
    )
    horizontal_flip: bool = setting(False, "Mirror half of the training images.", BOOLEAN)
    random_affine: float = setting(
        0.0, "Share of training images that are turned, stretched and shifted a little.", FRACTION
    )
    random_affine_until: str = setting(
        "80%", "When `random_affine` ends; from then on images are unchanged.", DURATION
    )
    affine_contrast: float = setting(
        1.0, "Contrast of images that were turned; above 1 against their blur.", POSITIVE
    )
    condition: str = setting(
        "",
        "What every network is told of an image, in `config.model.condition_size` numbers: "
        "`affine`, how `random_affine` turned it (6 numbers), zeros if it did not and outside of "
        "training; `label`, its class, one-hot (as many as there are classes).",
        CONDITION,
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """Optimization, and when it is evaluated and saved."""

    initial_weights: str = setting(
        "",
        "Workdir to take initial weights from, the averaged ones: of the same model or, with "
        "`prior='spline'`, of that with `prior='gaussian'`.",
        TEXT,
    )
    batch_size: int = setting(200, "Images of one update, over all devices.", POSITIVE_INT)
    accumulate_steps: int = setting(
        1,
        "Pieces that a device's part of the batch is cut into and that are computed one after "
        "another, in less memory; the update is the same.",
        POSITIVE_INT,
    )
    precision: str = setting(
        "float32",
        "Of the networks' products in training: JAX's own for float32, on GPUs TF32; or inputs "
        "rounded to bfloat16.",
        one_of(*PRECISIONS),
    )
    num_epochs: int = setting(30, "Length of the training.", POSITIVE_INT)
    num_steps: int = setting(0, "Its length in updates; 0: `num_epochs` says it.", NATURAL)
    schedule_horizon: str = setting(
        "100%",
        "Length over which schedules run, and of which durations in percent are shares: a share of "
        "the training, or a fixed duration.",
        INTERVAL,
    )
    schedule_when_extended: str = setting(
        "hold",
        "The learning rate of what `--extend` adds: where the schedule ended; or the schedule anew "
        "over the added steps, warm-up and fall.",
        one_of("hold", "restart"),
    )
    num_train_samples: int = setting(
        1, "Samples of the codes per image; above 1: the importance-weighted bound.", POSITIVE_INT
    )
    importance_weighted_from: str = setting(
        "0%", "When that bound begins; until then the ELBO, one sample.", DURATION
    )
    optimizer: str = setting(
        "adam",
        "Name of the optimizer; `muon`: of the kernels of dense and convolutional layers, of all "
        "else `adam`, with the same learning rate.",
        one_of("adam", "adamax", "muon"),
    )
    weight_decay: float = setting(0.0, "Weight decay, decoupled as in AdamW.", NOT_NEGATIVE)
    weight_decay_on: str = setting(
        "all",
        "What it acts on: all parameters; `generative`, those of priors, bijectors, data layers "
        "and the state of `sere_vae`, not of encoders and posteriors; or `kernels`, all matrices, "
        "no biases.",
        one_of("all", "generative", "kernels"),
    )
    learning_rate: float = setting(1e-3, "Learning rate after the warm-up, its peak.", POSITIVE)
    learning_rate_schedule: str = setting(
        "cosine",
        "How the learning rate falls after the warm-up.",
        one_of("constant", "linear", "cosine"),
    )
    final_learning_rate_factor: float = setting(
        0.01, "Share of the peak that is left at the end.", FRACTION
    )
    warmup: str = setting(
        "500 steps",
        "How long the learning rate rises, linearly; at most half of the training.",
        DURATION,
    )
    kl_weight_start: float = setting(0.2, "Weight of the KL at the start; it rises to 1.", FRACTION)
    kl_warmup: str = setting("10%", "How long that weight rises, linearly.", DURATION)
    max_gradient_norm: float = setting(
        100.0, "Longer gradients are shortened to it; 0: never.", NOT_NEGATIVE
    )
    max_update_rms: float = setting(
        0.0,
        "Largest root mean square of the optimizer's update of an array, in learning rates; longer "
        "ones are shortened to it; 0: never.",
        NOT_NEGATIVE,
    )
    ema_decay: float = setting(
        0.9995, "Decay of the averaged weights, which all evaluations use.", BELOW_ONE
    )
    max_consecutive_skips: int = setting(
        20, "Non-finite updates in a row at which the run stops.", POSITIVE_INT
    )
    steps_per_dispatch: int = setting(
        50,
        "Updates in one call of the compiled program, a dispatch; then the log is written.",
        POSITIVE_INT,
    )
    evaluate_every: str = setting(
        "1 epochs", "How often the ELBO of the validation images is computed.", INTERVAL
    )
    checkpoint_every: str = setting("1 epochs", "How often a checkpoint is saved.", INTERVAL)
    patience: str = setting(
        "",
        "How long the ELBO of the validation images may fail to rise before the training stops.",
        INTERVAL_OR_NONE,
    )
    keep_checkpoints: int = setting(
        2, "How many of the latest checkpoints stay; so does the best one.", POSITIVE_INT
    )
    sinks: str = setting(
        "", "Where records also go: any of csv, wandb and mlflow, with commas between.", SINKS
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures at the end, of the test set as a rule."""

    num_importance_samples: int = setting(1000, "Samples of the codes per image.", POSITIVE_INT)
    batch_size: int = setting(
        100, "Images at once on one device, `samples_at_once` samples of each.", POSITIVE_INT
    )
    samples_at_once: int = setting(
        10, "Samples of an image at once; memory grows with them.", POSITIVE_INT
    )
    split: str = setting(
        "test",
        "Which images, in figures and pictures: `test`, or `validation`, those held out, to choose "
        "between configurations.",
        one_of("test", "validation"),
    )
    num_examples: int = setting(0, "How many of them, the first ones; 0: all.", NATURAL)
    test_elbo_every: str = setting(
        "",
        "How often training also logs the test set's ELBO, which chooses nothing. Only with "
        "`split='test'`.",
        INTERVAL_OR_NONE,
    )
    checkpoint: str = setting(
        "best", "The one with the best validation ELBO, or the last one.", one_of("best", "last")
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Images that are drawn."""

    num_images: int = setting(
        100, "How many samples; 0: no samples, reconstructions or other images.", NATURAL
    )
    seed: int = setting(0, "Seed of their codes and pixels.", SEED)
    completion_steps: int = setting(
        100, "Steps of the chain that completes half images for the report; 0: none.", NATURAL
    )


@dataclasses.dataclass(frozen=True)
class Paper:
    """What the report compares -log p(x) with: the paper's figure, and what was measured here."""

    nll: float | None = setting(None, "The paper's -log p(x) in nats, if any.", NUMBER_OR_NONE)
    expected_nll: float | None = setting(
        None, "What the configuration as it is gave here, in nats, if known.", NUMBER_OR_NONE
    )


SECTIONS: dict[str, Any] = {
    "": General,
    "dataset": Dataset,
    "model": ModelConfig,
    "training": Training,
    "evaluation": Evaluation,
    "sampling": Sampling,
    "paper": Paper,
}
# Of all sections but the model's, by path.
FIELDS: dict[str, Setting] = {
    f"{section}.{name}".removeprefix("."): declared
    for section, fields in SECTIONS.items()
    if fields is not ModelConfig
    for name, declared in settings_of(fields).items()
}


def defaults() -> dict[str, Any]:
    """A configuration in which every field has its default."""
    config: dict[str, Any] = {}
    for section, fields in SECTIONS.items():
        values = {name: declared.default for name, declared in settings_of(fields).items()}
        config |= {section: values} if section else values
    return config
