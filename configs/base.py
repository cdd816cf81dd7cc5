"""What every experiment shares. Other configurations import this one and override fields.

    python -m experiments.main --config=configs/base.py

trains the paper's MLP SeRe-VAE at its defaults on the embedded digits.

Durations are strings: "500 steps", "1.5 epochs", or "10%" of the training.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.system.errors import nearest

VARIANTS: dict[str, dict[str, Any]] = {"": {}}


def get_config(variant: str = "") -> ConfigDict:
    """The base configuration; it has no variants."""
    choose_variant(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0  # of parameters, data order and noise

    config.dataset = dataset = ConfigDict()
    dataset.name = "digits"  # digits, photos, npz, or an image data set of TFDS
    dataset.data_dir = ""  # where TFDS data sets are; else TFDS_DATA_DIR, else TFDS' default
    dataset.path = ""  # the file of `npz`
    dataset.download = True  # prepare a TFDS data set that is not there yet
    dataset.validation_size = 0.1  # the last training examples: a number or a fraction
    dataset.num_train_examples = 0  # use at most so many, the first ones; 0: all
    dataset.image_size = 32  # of the patches of `photos`
    dataset.horizontal_flip = False
    dataset.random_affine = 0.0  # share of training images turned, stretched and shifted a little
    dataset.random_affine_until = "80%"  # of the training; after it images are as they are
    dataset.affine_contrast = 1.0  # above 1 against the blur of images that were turned

    # sere_jax/config.py has more on each field of the model.
    config.model = model = ConfigDict()
    model.system = "sere_vae"  # sere_vae, ladder_vae, iaf_vae, relaxed_bernoulli_vae
    model.data_shape = (8, 8, 1)  # height, width, channels
    model.num_layers = 10  # L, also the number of blocks of an image
    model.latent_shape = (10,)  # of a layer's code; (0,): none, a plain flow
    model.latent_sizes = ()  # of each layer, at most latent_shape; (): all of it
    model.partition = "raster"  # raster, checkerboard, tiles
    model.context = 1  # how many previous codes layers see
    model.data_context = 1  # how many previous blocks data layers see
    model.couple_prior = True  # prior and posterior see previous codes,
    model.couple_bijector = True  # bijectors see them,
    model.couple_data = True  # data layers see previous blocks,
    model.couple_data_to_prior = False  # and so do prior and posterior
    # rank_one_affine, spline_coupling, masked_autoregressive, inverse_autoregressive, identity
    model.bijector = "rank_one_affine"
    model.carry_start = 0.0  # of z_{l-1}, which rank_one_affine hands on to z_l at the start
    # bernoulli: binarized images; gaussian: dequantized ones; discretized_logistic_mixture: 0..255;
    # masked_autoregressive_flow: dequantized ones in logit space
    model.data_layer = "bernoulli"
    model.data_scale = 0.0  # standard deviation of gaussian data; 0: learned
    model.num_mixtures = 10  # of discretized logistics
    model.num_flows = 2  # a layer, of masked_autoregressive_flow; of iaf_vae
    model.flow_hidden_size = 1024  # width of masked networks of masked_autoregressive_flow
    model.flow_direct_connections = False  # they are linear in what they see besides
    model.prior = "gaussian"  # gaussian, standard_normal
    model.network = "mlp"  # mlp, resnet, linear
    model.encoder = "independent"  # independent, shared
    model.hidden_size = 200  # or channels of hidden maps
    model.num_hidden_layers = 2  # at least 2
    model.num_joint_layers = 0  # more hidden layers in data layers, after codes and blocks have met
    model.dropout = 0.0  # of hidden units of MLPs that read the image or blocks, in training
    model.rematerialize = False  # less memory, a third more work
    model.sigma_min = 0.1  # bounds of the prior's scale
    model.sigma_max = 2.0
    model.residual_scale_start = 0.73  # of the posterior's scale over the prior's
    model.condition_residual_on_latents = True  # the posterior's residual sees previous codes too
    model.prior_temperature = 1 / 2  # of relaxed_bernoulli_vae
    model.posterior_temperature = 2 / 3  # of relaxed_bernoulli_vae

    config.training = training = ConfigDict()
    training.initial_weights = ""  # a workdir whose averaged weights to start from
    training.batch_size = 200  # over all devices
    training.num_epochs = 30
    training.num_steps = 0  # instead of num_epochs, if above 0
    training.num_train_samples = 1  # above 1: the importance-weighted bound
    training.importance_weighted_from = "0%"  # of the training; before it one sample, the ELBO
    training.optimizer = "adam"  # adam, adamax
    training.weight_decay = 0.0  # decoupled, as in AdamW
    training.learning_rate = 1e-3  # its peak, after the warm-up
    training.learning_rate_schedule = "cosine"  # constant, linear, cosine
    training.final_learning_rate_factor = 0.01  # what is left of the peak at the end
    training.warmup = "500 steps"  # the learning rate rises linearly for so long
    training.kl_weight_start = 0.2  # the weight of the KL rises from here to 1
    training.kl_warmup = "10%"  # for so long
    training.max_gradient_norm = 100.0  # larger gradients are shortened to it; 0: never
    training.ema_decay = 0.9995  # of the averaged weights, which all evaluations use
    training.max_consecutive_skips = 20  # non-finite updates in a row before the run stops
    training.steps_per_dispatch = 50  # updates between two looks at the log
    training.evaluate_every = "1 epochs"  # the ELBO of the validation images
    training.checkpoint_every = "1 epochs"
    training.keep_checkpoints = 2  # the latest ones; the best one stays besides

    config.evaluation = evaluation = ConfigDict()
    evaluation.num_importance_samples = 1000
    evaluation.batch_size = 100  # images at once on one device, ten samples of each
    evaluation.num_examples = 0  # of the test set; 0 is all of them
    evaluation.test_elbo_every = ""  # also log the test set's ELBO in training; it chooses nothing
    evaluation.checkpoint = "best"  # best validation ELBO, or last

    config.sampling = sampling = ConfigDict()
    sampling.num_images = 100
    sampling.seed = 0

    config.paper = ConfigDict({"nll": placeholder(float)})  # the paper's figure in nats, if any
    return config.lock()


def choose_variant(variant: str, variants: Mapping[str, Any]) -> Any:
    """The overrides called `variant`.

    Raises:
        ValueError: there is no such variant; the message names those that exist.
    """
    if variant not in variants:
        known = ", ".join(name or "(none)" for name in variants)
        hint = nearest(variant, variants)
        raise ValueError(f"unknown variant {variant!r}; choose one of: {known}{hint}")
    return variants[variant]
