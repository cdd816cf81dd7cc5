"""Prepares a data set of TensorFlow Datasets (TFDS), so that it can be read without TensorFlow.

    python -m experiments.prepare_data --dataset=mnist [--data_dir=DIR] [--manual_dir=DIR]

See `experiments.data.preparing`.
"""

from absl import app, flags

from experiments.data import DATASETS
from experiments.data.preparing import SOURCE_READERS, find_builder, is_prepared, prepare
from experiments.system import console
from experiments.system.errors import UserError, told_in_one_line


def _main(argv: list[str]) -> None:
    with told_in_one_line():
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; write --dataset=NAME")
        name, data_dir = flags.FLAGS.dataset, flags.FLAGS.data_dir
        if not name:
            raise UserError(
                f"--dataset=NAME is missing; without TensorFlow: {', '.join(SOURCE_READERS)}"
            )
        if name in DATASETS:
            raise UserError(
                f"the data set {name!r} needs no preparation: use it by "
                f"--config.dataset.name={name}"
            )
        builder = find_builder(name, data_dir)
        if is_prepared(builder):
            print(f"{builder.name} is already prepared in {builder.data_path}")
        else:
            directory = prepare(name, data_dir, flags.FLAGS.manual_dir)
            print(f"{builder.name} is prepared in {directory}")


def run() -> None:
    """Runs the command line; the flags are defined here, so that an import defines none."""
    flags.DEFINE_string("dataset", "", "Name of the data set, NAME[/CONFIG][:VERSION].")
    flags.DEFINE_string(
        "data_dir", "", "Where to write; default: TFDS_DATA_DIR, else ~/tensorflow_datasets."
    )
    flags.DEFINE_string(
        "manual_dir", None, "Directory with the source files, if downloaded before."
    )
    app.run(_main)


if __name__ == "__main__":
    console.make_robust()
    run()
