"""Bad input is one line, and nothing is touched; of the command: on stderr, with exit code 2."""

import json
import os
import pathlib
import subprocess
import sys
import types
import zipfile

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from absl import flags
from ml_collections import config_flags

import sere_jax
from experiments.command_line.flags import CommandLineError, parse
from experiments.system.errors import UserError
from experiments.training.experiment import create_experiment

ROOT = pathlib.Path(__file__).parents[2]

# In all tables: arguments (in the first ones after "--config.", separated by blanks) to words that
# the message must hold. {files} is the folder of the fixture `files`.
MODEL = {
    "hidden_size=many": ["hidden_size=many must be an integer"],
    "hidden_size=3.5": ["hidden_size=3.5 must be an integer"],
    "hidden_size=0": ["hidden_size=0", "an integer from 1"],
    "hidden_size=-8": ["hidden_size=-8", "an integer from 1"],
    "hidden_size=1000000": ["hidden_size=1000000", "GB of memory", "lower one of them"],
    "hidden_size=2000000000": ["hidden_size=2000000000 must be an integer from 1 to 1048576"],
    "flow_hidden_size=2000000000": ["flow_hidden_size=2000000000", "from 1 to 1048576"],
    "num_hidden_layers=2000000000": ["num_hidden_layers=2000000000", "from 2 to 1000"],
    "num_joint_layers=2000000000": ["num_joint_layers=2000000000", "from 0 to 1000"],
    "num_flows=2000000000": ["num_flows=2000000000", "from 1 to 1000"],
    "num_layers=0": ["num_layers=0", "an integer from 1"],
    "num_layers=65": ["num_layers=65 exceeds the 64 pixels", "choose 1 to 64"],
    "num_layers=5 partition=tiles": ["num_layers=5 is not a square", "choose 4 or 9"],
    "num_layers=9 partition=tiles": ["num_layers=9 cuts a 8x8 image", "multiples of"],
    "num_layers=9 partition=checkerboard": ["num_layers=9 cuts a 8x8 image", "multiples of"],
    "partition=rastr": ["partition='rastr' is not one of checkerboard, raster", "mean 'raster'?"],
    "bijector=rank_one": ["bijector='rank_one' is not one of", "mean 'rank_one_affine'?"],
    "bijector=☃": ["bijector='☃' is not one of identity"],
    "data_layer=bernouli": ["data_layer='bernouli' is not one of", "mean 'bernoulli'?"],
    "data_scale=0.5": ["data_scale=0.5 means nothing to", "data_layer='gaussian'"],
    "data_layer=discretized_logistic_mixture": ["the images of 'digits' have 0 to 16", "gaussian"],
    "network=resnet latent_shape=(3,3,2)": ["(3, 3, 2) does not fit the blocks", "1x16 pixels"],
    "network=mpl": ["network='mpl' is not one of", "mean 'mlp'?"],
    "latent_shape=(2,": ["latent_shape=(2, must be a tuple"],
    "latent_shape=(0,)": ["latent_shape=(0,) (no latents)", "choose data_layer"],
    "num_flows=0": ["num_flows=0", "an integer from 1"],
    "prior=normal": ["prior='normal' must be one of gaussian, standard_normal, spline"],
    "prior=standard_normal couple_data_to_prior=True": ["needs a prior with parameters"],
    "latent_shape=()": ["latent_shape=()", "at least 1"],
    "latent_shape=(2.5,)": ["latent_shape=(2.5,)", "integers"],
    "latent_shape=wide": ["latent_shape=('wide',)", "integers"],
    "latent_shape[0]=3": ["no field 'latent_shape[0]'", "mean 'latent_shape'?"],
    "latent_shape=(2,) latent_shape=(3,)": ["latent_shape is given 2 times"],
    "data_shape=(9,9,1)": ["data_shape=(9, 9, 1) does not fit", "'digits'", "(8, 8, 1)"],
    "data_shape=(8,8)": ["data_shape=(8, 8) must be", "3 entries"],
    "data_shape=8": ["data_shape=(8,) must be", "3 entries"],
    "data_shape=(8,-8,1)": ["data_shape=(8, -8, 1)", "at least 1"],
    "context=5": ["context=5 exceeds num_layers=4", "choose 1 to 4"],
    "data_context=0": ["data_context=0", "an integer from 1"],
    "num_hidden_layers=1": ["num_hidden_layers=1 must be an integer from 2"],
    "sigma_min=nan": ["sigma_min=nan must be a number of at least 0"],
    "sigma_max=inf": ["sigma_max=inf must be a number above 0", "below 2^128"],
    "sigma_max=1e300": ["sigma_max=1e+300", "2^128"],
    "couple_prior=maybe": ["couple_prior=maybe must be True or False"],
    "hiden_size=3": ["config.model has no field 'hiden_size'; did you mean 'hidden_size'?"],
    "zzz=3": ["config.model has no field 'zzz'; its fields are bijector,"],
    "hidden_size.x=3": ["config.model.hidden_size is a value, it has no fields"],
}
TRAINING = {
    "weight_decay_on=generative": ["weight_decay_on='generative' means nothing with", "to 'all'"],
    "weight_decay=0.1 weight_decay_on=kernel": ["all, generative, kernels", "mean 'kernels'?"],
    "batch_size=0": ["batch_size=0 must be an integer from 1"],
    "batch_size=100000": ["batch_size=100000 exceeds the 1273 training examples", "at most 1273"],
    "accumulate_steps=0": ["accumulate_steps=0 must be an integer from 1"],
    "accumulate_steps=3": [
        "accumulate_steps=3 does not divide the 128 images of a device's part of the batch",
        "choose one of 1, 2, 4, 8, 16, 32, 64, 128",
    ],
    "precision=bfloat": ["precision='bfloat' must be one of float32, bfloat16", "'bfloat16'?"],
    "num_epochs=0": ["num_epochs=0 must be an integer from 1"],
    "num_epochs=2000000000": ["num_epochs=2000000000 are", "choose fewer"],
    "num_steps=3000000000": ["num_steps=3000000000 must be an integer", "2^31 - 1"],
    "optimizer=adma": ["optimizer='adma' must be one of adam, adamax"],
    "learning_rate=fast": ["learning_rate=fast must be a number"],
    "learning_rate=nan": ["learning_rate=nan must be a number above 0"],
    "learning_rate=1e300": ["learning_rate=1e+300 must be a number above 0"],
    "max_gradient_norm=inf": ["max_gradient_norm=inf must be a number"],
    "learning_rate=1e-40": ["learning_rate=1e-40 must be a number above 0, of at least 2^-126"],
    "max_gradient_norm=1e-40": [
        "max_gradient_norm=1e-40 must be a number of at least 0, and if above 0"
    ],
    "initial_weights=gs://b/run": ["initial_weights='gs://b/run'", "is an address"],
    "initial_weights=~/absent": ["initial_weights='~/absent'", "there is no run in"],
    "ema_decay=1": ["ema_decay=1.0 must be a number from 0 to below 1"],
    "ema_decay=0.99999999": ["ema_decay=0.99999999 must be a number from 0 to below 1, at most"],
    "warmup=soon": ["warmup='soon' must be a duration: '500 steps'"],
    "warmup=5": ["warmup='5' must be a duration: '500 steps'"],
    "warmup=1e999_epochs": ["warmup='1e999_epochs' must be a duration"],
    "kl_warmup=1e999%": ["kl_warmup='1e999%' must be a duration"],
    "evaluate_every=0.0epochs": ["evaluate_every='0.0epochs' must be a duration above 0"],
    "checkpoint_every=0%": ["checkpoint_every='0%' must be a duration above 0"],
    "lerning_rate=1": ["training has no field 'lerning_rate'; did you mean 'learning_rate'?"],
    "batch_siz=3": ["config.training has no field 'batch_siz'; did you mean 'batch_size'?"],
    "a.b.c=3": ["config.training has no field 'a'; its fields are"],
}
DATASET = {
    "name=": ["dataset.name=''", "digits, photos, npz"],
    "name=digitz data_dir={files}/no": ["'digitz'", "the nearest names are digits"],
    "name=mnistt data_dir={files}/no": ["'mnistt'", "mnist"],
    "name=ünï data_dir={files}/no": ["'ünï'", "NAME[/CONFIG][:VERSION]"],
    "name=mnist:9.9.9 data_dir={files}/no": ["'mnist:9.9.9'", "3.0.1"],
    "name=mnist download=False data_dir={files}/no": [
        "{files}/no/mnist",
        "download is False",
        "experiments.prepare_data --dataset=mnist",
    ],
    "name=imdb_reviews data_dir={files}/no": ["'imdb_reviews' has no features", "npz"],
    "name=words data_dir={files}": ["'words' has no features that are uint8 images"],
    "name=damaged data_dir={files}": [
        "{files}/damaged/1.0.0 cannot be read",
        "again in another directory DIR",
        "--dataset=damaged --data_dir=DIR",
    ],
    "name=lost data_dir={files}": ["{files}/lost/1.0.0 is damaged", "again in another directory"],
    "name={files}": ["'{files}' is a path", "numpy.savez", "examples/dataset.py"],
    "name=./photos": ["'./photos' is a path", "dataset.name=npz", "dataset.name=folder"],
    "name=~/photos": ["'~/photos' is a path"],
    "name=configs": ["'configs' is a path"],
    "name=gs://bucket/mnist": ["'gs://bucket/mnist' is a path"],
    "name=mnist data_dir=gs://bucket": ["data_dir=gs://bucket is an address"],
    "name=mnist data_dir=~nobody.here/x": ["data_dir=~nobody.here/x: ~nobody.here is no known"],
    "path=x.npz": ["path='x.npz' means nothing to 'digits'", "name=npz"],
    "affine_contrast=0": ["affine_contrast=0.0 must be a number above 0"],
    "affine_contrast=inf": ["affine_contrast=inf must be a number above 0"],
    "name=photos": ["data_shape=(8, 8, 1) does not fit the images of 'photos'", "(32, 32, 3)"],
    "name=photos image_size=97": ["image_size=97", "1 to 96"],
    "validation_size=0": ["validation_size=0.0 must be a number of examples above 0"],
    "validation_size=1415": ["validation_size=1415.0 leaves nothing of the 1415"],
    "validation_size=0.9999": ["validation_size=0.9999 leaves nothing of the 1415"],
    "validation_size=nan": ["validation_size=nan must be a number"],
    "name=folder": ["config.dataset.path='' is not a folder"],
    "name=folder path={files}/good.npz": ["{files}/good.npz' is not a folder", ".png, .jpg"],
    "name=folder path={files}/lost": ["lost holds no pictures"],
    "name=folder path={files}/pictures": [
        "damaged.png is no PNG, JPEG or WebP picture",
        "dataset.bad_files=skip",
    ],
    "name=folder path={files}/pictures bad_files=skip": ["no picture of 'train' can be read"],
    "bad_files=ignore": ["bad_files='ignore' must be one of refuse, skip"],
    "placement=disk": ["placement='disk' must be one of auto, device, stream"],
    "num_train_examples=1": [
        "batch_size=128 exceeds the 1 training examples",
        "raise config.dataset.num_train_examples=1",
    ],
    "image_size=64": ["image_size=64 means nothing to 'digits'", "leave it at 32"],
    "name=photos shrink=2": ["shrink=2 means nothing to 'photos'", "leave it at 1"],
    "shrink=2": ["shrink=2 means nothing to 'digits'", "leave it at 1"],
}
NPZ = {
    "absent.npz": ["{files}/absent.npz' is not a file"],
    "~/x.npz": ["'~/x.npz' is not a file"],
    "~nobody.here/x.npz": ["~nobody.here is no known home"],
    "s3://bucket/x.npz": ["config.dataset.path=s3://bucket/x.npz is an address"],
    "x" * 300: ["is not a file"],
    "{files}": ["{files}' is not a file"],
    "text.npz": ["text.npz is not a readable .npz file", "no zip archive", "numpy.savez"],
    "empty.npz": ["empty.npz is not a readable .npz file", "no zip archive"],
    "truncated.npz": ["truncated.npz is not a readable .npz file", "no zip archive"],
    "bit.npz": ["bit.npz is not a readable .npz file", "CRC"],
    "bare.npy": ["data_shape=(8, 8, 1) does not fit the images of 'npz'", "(4, 4, 1)"],
    "cut.npy": ["cut.npy is not a readable .npy file", "numpy.save("],
    "bare_objects.npy": ["bare_objects.npy is not a readable .npy file", "numpy.save("],
    "entries.npz": ["entries.npz is not a readable .npz file", "'train' is not an array"],
    "objects.npz": ["objects.npz is not a readable .npz file", "Object arrays"],
    "no_train.npz": ["has no array 'train', it has images", "numpy.savez"],
    "empty_train.npz": ["'train' (uint8, shape [0, 4, 4]) is empty"],
    "empty_test.npz": ["'test' (uint8, shape [0, 4, 4]) is empty"],
    "no_pixels.npz": ["shape [30, 0, 4]) is empty"],
    "strings.npz": ["<U1", "does not hold numbers", "uint8 0..255"],
    "complex.npz": ["complex128", "does not hold numbers"],
    "above.npz": ["holds the value 256 at [2, 1, 0]", "uint8 0..255"],
    "below.npz": ["holds the value -1 at [2, 1, 0]"],
    "half.npz": ["holds the value 0.5 at [2, 1, 0]"],
    "nan.npz": ["holds the value nan at [2, 1, 0]"],
    "inf.npz": ["holds the value inf at [2, 1, 0]"],
    "flat.npz": ["has 2 dimensions"],
    "shapes.npz": ["'test'", "'train'", "differ in the shape"],
    "one.npz": ["too small to hold out a test set"],
    "two.npz": ["validation_size=0.1 leaves nothing of the 1 training examples"],
    "good.npz": ["data_shape=(8, 8, 1) does not fit the images of 'npz'", "(4, 4, 1)"],
}
CONFIGS = {
    "configs/digit.py": ["no such file", "did you mean 'configs/digits.py'?"],
    "configs/digits.py:nope": ["unknown variant 'nope'; choose one of: (none)"],
    "configs/mnist_mpl.py": ["no such file; did you mean 'configs/mnist_mlp.py'?"],
    "digits": ["no such file; did you mean 'configs/digits.py'?"],
    "configs/mnist_mlp.py:cas1": ["unknown variant 'cas1'", "mean 'case1'?"],
    "configs/mnist_mlp.py:dlgn": ["unknown variant 'dlgn'", "mean 'dlgm'?"],
    "configs/mnist_mlp.py:case9": ["unknown variant 'case9'", "case3, dlgm"],
    "configs": ["--config=configs: is a directory"],
    "": ["no such file", "configs/base.py, configs/cifar_cases.py"],
    "ünï.py": ["--config=ünï.py: there is no such file"],
    "~nobody.here/x.py": ["--config=~nobody.here/x.py: ~nobody.here is no known home"],
    "{files}/syntax.py": ["raised SyntaxError in line 1", "fix it"],
    "{files}/import_error.py": ["raised ModuleNotFoundError in line 1", "nonexistent"],
    "{files}/raises.py": ["raised RuntimeError in line 2 (the sky is falling)"],
    "{files}/exits.py": ["raised SystemExit in line 1 (7)"],
    "{files}/no_get_config.py": ["no attribute 'get_config'", "like configs/base.py"],
    "{files}/none.py": ["get_config() returned NoneType; it must return"],
    "{files}/dictionary.py": ["get_config() returned dict; it must return"],
    "{files}/no_model.py": ["config.model is missing"],
    "{files}/no_section.py": ["config.training.initial_weights is missing: 3 stands where"],
    "{files}/unknown_field.py": ["config.training.optimiser is not a field", "optimizer'?"],
}
COMMANDS = {
    "--config.modle.hidden_size=3": ["config has no field 'modle'; did you mean 'model'?"],
    "--config.model=3": ["this is a section; set its fields"],
    "--config.seed=-1": ["config.seed=-1 must be an integer from 0"],
    "--config.evaluation.num_importance_samples=5000000000": ["=5000000000 must be an integer"],
    "--config.evaluation.samples_at_once=0": ["samples_at_once=0 must be an integer from 1"],
    "--config.evaluation.checkpoint=first": ["must be one of best, last"],
    "--config.evaluation.num_examples=383": ["=383 exceeds the 382 test images of 'digits'"],
    "--config.evaluation.split=validation --config.evaluation.num_examples=143": [
        "=143 exceeds the 142 validation images of 'digits'"
    ],
    "--config.evaluation.split=validation --config.evaluation.test_elbo_every=50%": [
        "test_elbo_every='50%' asks for the test set, which config.evaluation.split='validation'",
        "set it to '', or split='test'",
    ],
    "--config.seed=4294967296": ["config.seed=4294967296 must be an integer from 0 to 2^32 - 1"],
    "--config.sampling.num_images=-1": ["num_images=-1 must be an integer from 0"],
    "--config.paper.nll=good": ["nll=good must be a number"],
    "--config.training.batch_size=30": ["batch_size=30 (over all devices)", "4 devices; choose 28"],
    "--mode=dance": ["--mode=dance", "train|evaluate|sample|report|export"],
    "--mode=trian": ["train|evaluate|sample|report|export>; did you mean 'train'?"],
    "--mode=evaluate": ["there is no run in --workdir=runs/digits; train first"],
    "--wrokdir=x": ["there is no flag --wrokdir; did you mean '--workdir'?"],
    "--mod=train": ["there is no flag --mod; did you mean '--mode'?"],
    "--lerning_rate=1": ["no flag --lerning_rate; did you mean '--config.training.learning_rate'?"],
    "--num_layers=4": ["there is no flag --num_layers; did you mean '--config.model.num_layers'?"],
    "--xyzzy=4": ["there is no flag --xyzzy; see --help"],
    "--config.num_epochs=4": ["config has no field", "mean '--config.training.num_epochs'?"],
    "--config.model.num_epochs=4": ["has no field", "mean '--config.training.num_epochs'?"],
    "--config=configs/cifar_cases.py --config.training.num_epochs=4": [
        "num_epochs=4 means nothing beside config.training.num_steps=790",
        "add --config.training.num_steps=0",
    ],
    "--licence=cc0-1.0": ["--licence=cc0-1.0 means nothing to --mode=train"],
    "extra": ["unexpected arguments extra", "--help"],
    "--workdir=": ["--workdir='' has no name"],
    "--workdir=gs://bucket/run": ["--workdir=gs://bucket/run is an address; name a folder"],
    "--workdir=~nobody.here/run": ["--workdir=~nobody.here/run: ~nobody.here is no known home"],
    "--workdir=a\\b": ["--workdir=a\\b has a backslash", "choose another name"],
    "--workdir=/dev/null/x": ["--workdir=/dev/null/x cannot be written to"],
    "--workdir=" + "x" * 300: ["cannot be written to (File name too long)"],
    "--workdir={files}/other_run": ["another configuration (a: 1 -> '(missing)'"],
    "--workdir={files}/no_json": ["config.json is not JSON", "another --workdir"],
    "--workdir={files}/no_run": ["config.json holds no configuration"],
}


def all_cases():
    for section, cases in (("model", MODEL), ("training", TRAINING), ("dataset", DATASET)):
        for overrides, words in cases.items():
            yield [f"--config.{section}.{override}" for override in overrides.split(" ")], words
    for path, words in NPZ.items():
        path = path if path[0] in "{~" or "://" in path else f"{{files}}/{path}"
        yield ["--config.dataset.name=npz", f"--config.dataset.path={path}"], words
    for config, words in CONFIGS.items():
        yield [f"--config={config}"], words
    for arguments, words in COMMANDS.items():
        yield arguments.split(" "), words


CASES = list(all_cases())
# Those that are not of the configuration alone, and some of each other kind.
# Weights are read after the configuration; modules that were loaded before leave names in others.
NOT_IN_PROCESS = ("--config.training.initial_weights=", "--config={files}/no_get_config.py")
OF_THE_COMMAND = [
    case
    for index, case in enumerate(CASES)
    if index % 12 == 0 or case[0][0] in COMMANDS or case[0][0].startswith(NOT_IN_PROCESS)
]
OF_THE_CONFIGURATION = [case for case in CASES if case not in OF_THE_COMMAND]

# These start Python anew, as a user does; all of them take too long that way.
GENUINE = (
    "--config.model.hiden_size=3",
    "--config.training.batch_size=100000",
    "--config.dataset.name=damaged",
    "--config={files}/raises.py",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data sets, configurations and workdirs with whatever may be wrong with them."""
    directory = tmp_path_factory.mktemp("files")
    write_arrays(directory)
    write_configurations(directory)
    write_tfds(directory)
    for name, content in {"other_run": '{"a": 1}', "no_json": "{", "no_run": "[]"}.items():
        (directory / name).mkdir()
        (directory / name / "config.json").write_text(content)
    return directory


def write_arrays(directory):
    grey = np.random.default_rng(0).integers(0, 256, (30, 4, 4), np.uint8)

    def save(name, **arrays):
        np.savez(directory / f"{name}.npz", **arrays)

    def save_with(name, value, dtype):
        array = np.zeros((30, 4, 4), dtype)
        array[2, 1, 0] = value
        save(name, train=array)

    save("good", train=grey)
    content = (directory / "good.npz").read_bytes()
    (directory / "truncated.npz").write_bytes(content[: len(content) // 2])
    (directory / "bit.npz").write_bytes(content[:300] + b"?!" + content[302:])
    (directory / "text.npz").write_text("hello\n")
    (directory / "empty.npz").write_bytes(b"")
    np.save(directory / "bare.npy", grey)
    (directory / "cut.npy").write_bytes((directory / "bare.npy").read_bytes()[:-1])
    np.save(directory / "bare_objects.npy", np.array([None] * 8))
    (directory / "pictures").mkdir()
    (directory / "pictures" / "damaged.png").write_bytes(b"")
    with zipfile.ZipFile(directory / "entries.npz", "w") as archive:
        archive.writestr("train", "hello")
    save("objects", train=np.array([None] * 8).reshape(2, 2, 2))
    save("no_train", images=grey)
    save("empty_train", train=grey[:0])
    save("empty_test", train=grey, test=grey[:0])
    save("no_pixels", train=grey[:, :0])
    save("strings", train=np.full((30, 4, 4), "a"))
    save("complex", train=grey.astype(complex))
    save("flat", train=grey[0])
    save("shapes", train=grey, test=grey[:, :3])
    save("one", train=grey[:1])
    save("two", train=grey[:2])
    save_with("above", 256, np.int32)
    save_with("below", -1, np.int16)
    save_with("half", 0.5, np.float32)
    save_with("nan", np.nan, np.float32)
    save_with("inf", np.inf, np.float64)


def write_configurations(directory):
    take_digits = (
        "from configs import digits\ndef get_config(variant=''):\n    c = {}\n    return c\n"
    )
    digits = "digits.get_config().unlock()"
    configurations = {
        "syntax": "def get_config(:\n",
        "import_error": "import nonexistent\n",
        "raises": "def get_config(variant=''):\n    raise RuntimeError('the sky\\nis falling')\n",
        "exits": "raise SystemExit(7)\n",
        "no_get_config": "x = 1\n",
        "none": "def get_config(variant=''):\n    pass\n",
        "dictionary": take_digits.format("digits.get_config().to_dict()"),
        "no_model": take_digits.format(f"{digits}; del c['model']"),
        "no_section": take_digits.format(f"{digits}; del c['training']; c.training = 3"),
        "unknown_field": take_digits.format(f"{digits}; c.training.optimiser = 'adam'"),
    }
    for name, text in configurations.items():
        (directory / f"{name}.py").write_text(text)


class FakeBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set with 40 examples."""

    VERSION = tfds.core.Version("1.0.0")
    feature = tfds.features.Image(shape=(5, 4, 1))
    example = PIL.Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4))

    def _info(self):
        features = tfds.features.FeaturesDict({"image": self.feature})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in ("train", "test")}

    def _generate_examples(self):
        for key in range(40):
            yield key, {"image": self.example}


def write_tfds(directory):
    def write(name, **attributes):
        keywords = {"skip_registration": True}
        builder = types.new_class(
            name, (FakeBuilder,), keywords, lambda body: body.update(attributes)
        )
        builder(data_dir=directory, file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
        (train,) = directory.rglob(f"{name.lower()}-train.array_record*")
        return train

    write("Words", feature=tfds.features.Text(), example="a")
    damaged = write("Damaged")
    damaged.write_bytes(damaged.read_bytes()[:-200])
    write("Lost").unlink()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }


@pytest.fixture(scope="module")
def fork(environment):
    """Function of arguments and a folder to what the command does there, in a fresh process."""
    server = subprocess.Popen(
        [sys.executable, str(pathlib.Path(__file__).with_name("fork_server.py"))],
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"

    def run(arguments, cwd, outputs):
        stdout, stderr = outputs / "stdout", outputs / "stderr"
        request = {"arguments": arguments, "cwd": str(cwd)}
        request |= {"stdout": str(stdout), "stderr": str(stderr)}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return code, stdout.read_text(), stderr.read_text()

    yield run
    server.stdin.close()
    server.stdout.close()
    assert server.wait(timeout=60) == 0


@pytest.fixture
def cwd(tmp_path):
    """A folder in which the configurations are found; the workdir is runs/digits."""
    directory = tmp_path / "cwd"
    directory.mkdir()
    (directory / "configs").symlink_to(ROOT / "configs")
    return directory


def state_of(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def complete(arguments, files):
    arguments = [argument.replace("{files}", str(files)) for argument in arguments]
    has_config = any(argument.startswith("--config=") for argument in arguments)
    return arguments if has_config else ["--config=configs/digits.py", *arguments]


def assert_refused(result, words, cwd, files, before):
    code, stdout, stderr = result
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert stderr.startswith("error: ")
    for word in words:
        assert word.replace("{files}", str(files)) in stderr
    assert os.listdir(cwd) == ["configs"]
    assert state_of(files) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    OF_THE_COMMAND,
    ids=[" ".join(arguments)[:80] for arguments, _ in OF_THE_COMMAND],
)
def test_bad_input_is_one_line_on_stderr_and_changes_nothing(
    fork, files, cwd, tmp_path, arguments, words
):
    before = state_of(files)
    result = fork(complete(arguments, files), cwd, tmp_path)
    assert_refused(result, words, cwd, files, before)


# ml_collections imports configurations in a way that Python has deprecated.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "words"),
    OF_THE_CONFIGURATION,
    ids=[" ".join(arguments)[:80] for arguments, _ in OF_THE_CONFIGURATION],
)
def test_a_bad_configuration_is_one_line_and_changes_nothing(
    files, cwd, monkeypatch, capsys, arguments, words
):
    """What the command does before it trains, without a process of its own."""
    own = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=own)
    argv = ["main", *complete(arguments, files)]
    monkeypatch.setattr(flags, "FLAGS", own)
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads the overrides there
    monkeypatch.chdir(cwd)
    before = state_of(files)

    with pytest.raises((CommandLineError, UserError, sere_jax.ConfigError)) as refused:
        parse(argv)
        create_experiment(own["config"].value)

    for word in words:
        assert word.replace("{files}", str(files)) in " ".join(str(refused.value).split())
    assert capsys.readouterr().out == ""
    assert os.listdir(cwd) == ["configs"]
    assert state_of(files) == before


@pytest.mark.slow
@pytest.mark.parametrize("argument", GENUINE)
def test_bad_input_is_refused_by_the_genuine_command(environment, files, cwd, argument):
    arguments, words = next(case for case in CASES if case[0][0] == argument)
    before = state_of(files)
    finished = subprocess.run(
        [sys.executable, "-m", "experiments.main", *complete(arguments, files)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    result = finished.returncode, finished.stdout, finished.stderr
    assert_refused(result, words, cwd, files, before)


def test_there_are_enough_cases():
    assert len(CASES) >= 60 and len(OF_THE_COMMAND) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["abacus", "cuda"])
def test_absent_devices_are_one_line(environment, cwd, platform):
    finished = subprocess.run(
        [sys.executable, "-m", "experiments.main", "--config=configs/digits.py"],
        cwd=cwd,
        env={**environment, "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: JAX finds no devices")
    assert finished.stderr.count("\n") == 1 and "JAX_PLATFORMS=cpu" in finished.stderr
    assert os.listdir(cwd) == ["configs"]
