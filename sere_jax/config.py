"""The model's configuration: one frozen record, checked before anything is traced.

Each field is declared once, with its default, its meaning and its rule (`sere_jax.rules`).
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, no_type_check

from sere_jax.conflicts import (
    FLOW,
    LADDER_VAE,
    NO_LATENTS,
    RELAXED_BERNOULLI_VAE,
    SERE_VAE,
    conflicts,
)
from sere_jax.rules import (
    BELOW_ONE,
    BOOLEAN,
    DATA_SHAPE,
    INSIDE_UNIT_INTERVAL,
    LATENT_SHAPE,
    LATENT_SIZES,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    WIDTH,
    between,
    name_in,
    nearest,
    one_of,
    python_value,
    refusal,
    setting,
    settings_of,
)

LEARNED_PRIOR = {"prior": ("gaussian", "spline")}
_of_sere_vae = functools.partial(setting, systems=(SERE_VAE,))
_of_relaxed_bernoulli_vae = functools.partial(setting, systems=(RELAXED_BERNOULLI_VAE,))


class ConfigError(ValueError):
    """An impossible configuration. The message is one line: field, value, choices, way out."""


@no_type_check  # by other code than its own, in tests: it says more
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model, as `config.model` of an experiment describes it; checked and hashable.

    Numbers and shapes may be NumPy's; they become Python's.
    """

    data_shape: tuple[int, ...] = setting(
        (8, 8, 1), "(height, width, channels) of one image.", DATA_SHAPE, is_required=True
    )
    num_layers: int = setting(
        10, "L, the number of blocks of x and of latent layers.", POSITIVE_INT, is_required=True
    )
    latent_shape: tuple[int, ...] = setting(
        (10,),
        "Shape of the code of one layer: (10,), or (8, 8, 2) for maps; (0,): none, a plain flow.",
        LATENT_SHAPE,
        is_required=True,
    )
    system: str = setting(
        SERE_VAE,
        "`sere_vae`, the hierarchy of the paper; or one that it is compared with.",
        name_in("sere_jax.functions.SYSTEMS"),
    )
    latent_sizes: tuple[int, ...] = setting(
        (),
        "How many of the latents of `latent_shape` each layer has; (): all of them.",
        LATENT_SIZES,
        systems=(SERE_VAE, LADDER_VAE),
    )
    partition: str = _of_sere_vae(
        "raster", "How x is cut into L blocks.", name_in("sere_jax.partition.PARTITIONS")
    )
    block_order: str = _of_sere_vae(
        "raster",
        "In which order the layers generate the s x s pattern of `checkerboard` and `tiles`: row "
        "by row from the left; `boustrophedon`, every other row from the right; along a `hilbert` "
        "curve; or `coarse_to_fine`, first every other one of every other row, likewise ordered.",
        one_of("raster", "boustrophedon", "hilbert", "coarse_to_fine"),
    )
    context: int = _of_sere_vae(
        1,
        "k, prior, posterior and bijector see the codes z_{l-k} .. z_{l-1}; 1 is the paper.",
        POSITIVE_INT,
    )
    state_size: int = _of_sere_vae(
        0,
        "Channels of a deterministic state of all codes so far (`sere_jax.top_down`), which layers "
        "see in the place of the previous code; 0: none.",
        NATURAL,
        needs={"context": 1, "carry_start": 0.0},
    )
    bijector_diagonal_min: float = _of_sere_vae(
        0.0,
        "Least d of the rank-one affine bijector diag(d) + u uᵀ: it keeps z_l dependent on ε_l.",
        BELOW_ONE,
        needs={"bijector": "rank_one_affine"},
    )
    data_context: int = _of_sere_vae(
        1,
        "j, a data layer sees the blocks x_{l-j} .. x_{l-1}, and so do priors with "
        "`couple_data_to_prior`; 1 is the paper, L is all.",
        POSITIVE_INT,
    )
    couple_prior: bool = _of_sere_vae(
        True, "Prior and posterior layers see the previous codes.", BOOLEAN
    )
    couple_bijector: bool = _of_sere_vae(True, "Bijective layers see the previous codes.", BOOLEAN)
    couple_data: bool = _of_sere_vae(True, "Data layers see the previous blocks.", BOOLEAN)
    couple_data_to_prior: bool = _of_sere_vae(
        False, "Prior layers see the previous blocks too, and the posterior their μ and σ.", BOOLEAN
    )
    bijector: str = _of_sere_vae(
        "rank_one_affine", "Name of the bijective layer.", name_in("sere_jax.bijector.BIJECTORS")
    )
    carry_start: float = _of_sere_vae(
        0.0,
        "a: at the start z_l is about a z_{l-1} + √(1 - a²) ε_l, by the rank-one affine bijector. "
        "With the prior's scale σ its variance is σ² (1 - a^(2l)). 0: z_{l-1} is not added.",
        BELOW_ONE,
        needs={"bijector": "rank_one_affine"},
    )
    data_layer: str = setting(
        "bernoulli",
        "`bernoulli`: binarized images; `gaussian`: dequantized; `discretized_logistic_mixture`: "
        "values 0..255; `masked_autoregressive_flow`: dequantized, in logit space.",
        name_in("sere_jax.data_layer.DATA_LAYERS"),
    )
    data_scale: float = setting(
        0.0,
        "Standard deviation of `gaussian` data; 0: learned, pixel by pixel.",
        NOT_NEGATIVE,
        needs={"data_layer": "gaussian"},
    )
    num_mixtures: int = setting(10, "Components of `discretized_logistic_mixture`.", POSITIVE_INT)
    num_flows: int = setting(
        2,
        "Flows of `masked_autoregressive_flow` in each layer, and of the posterior of `iaf_vae`.",
        between(1, 1000),
    )
    flow_hidden_size: int = setting(
        1024,
        "Width of the masked networks of `masked_autoregressive_flow`, which have "
        "`num_hidden_layers`; those of `iaf_vae` and of bijectors have `hidden_size`, and one "
        "layer fewer.",
        WIDTH,
    )
    flow_direct_connections: bool = setting(
        False,
        "The masked networks of `masked_autoregressive_flow` are also linear in what they see "
        "(Germain et al. 2015, section 4.2), and its flows follow the linear Gaussian "
        "autoregression of the images that `init` is given.",
        BOOLEAN,
        needs={"data_layer": FLOW},
    )
    prior: str = _of_sere_vae(
        "gaussian",
        "`gaussian`; `standard_normal`: ε_l ~ N(0, I) whatever z_{l-1} is; or `spline`: of the law "
        "of μ + σ S(η), η ~ N(0, I), with splines S that depend on what μ and σ do. The posterior "
        "stays Gaussian, and the KL is estimated from its one sample.",
        one_of("gaussian", "standard_normal", "spline"),
    )
    network: str = _of_sere_vae(
        "mlp",
        "Family of the neural networks; `linear`: affine maps.",
        name_in("sere_jax.networks.family.NETWORKS"),
    )
    encoder: str = _of_sere_vae(
        "independent",
        "`independent`: each layer's own, as in the paper; `shared`: one, refined from layer L to "
        "1; `local`: each layer's own, of x_{l-1}, x_l and x_{l+1} alone, and q is not exact.",
        one_of("independent", "shared", "local"),
    )
    hidden_size: int = setting(200, "Width of hidden layers, or channels of hidden maps.", WIDTH)
    num_hidden_layers: int = setting(
        2,
        "Number of hidden layers; an encoder of the whole image of `sere_vae` has one more. Of "
        "`resnet` all but the first are residual blocks.",
        between(2, 1000),
    )
    data_channels: int = _of_sere_vae(
        0,
        "Channels of maps of a block's pixels on which the networks of data layers compute where "
        "codes are vectors; 0: they compute on vectors of `hidden_size`.",
        NATURAL,
        needs={"network": "resnet"},
    )
    num_joint_layers: int = _of_sere_vae(
        0,
        "Residual hidden layers that data layers add where codes and previous blocks have met.",
        between(0, 1000),
        needs={"network": "mlp", "couple_data": True},
    )
    dropout: float = _of_sere_vae(
        0.0,
        "Share of hidden units dropped in training, in the MLPs that read x or its blocks.",
        BELOW_ONE,
        needs={"network": "mlp"},
    )
    generative_dropout: float = _of_sere_vae(
        0.0,
        "Share of hidden units dropped in training, in the MLPs of priors and data layers that "
        "read codes; those that read previous blocks drop the larger of it and `dropout`.",
        BELOW_ONE,
        needs={"network": "mlp"},
    )
    block_dropout: float = _of_sere_vae(
        0.0,
        "Share of pixels of the previous blocks that priors and data layers see as 0 in training; "
        "the others are not rescaled.",
        BELOW_ONE,
    )
    rematerialize: bool = _of_sere_vae(
        False,
        "Compute hidden layers again in the backward pass: less memory, a third more work.",
        BOOLEAN,
    )
    condition_size: int = _of_sere_vae(
        0,
        "C, how many numbers of an image's `condition` [B, C] every network sees; 0: none.",
        NATURAL,
    )
    sigma_min: float = _of_sere_vae(
        0.1, "Lower bound on the prior's scale (0: float32's).", NOT_NEGATIVE, needs=LEARNED_PRIOR
    )
    sigma_max: float = _of_sere_vae(
        2.0, "Upper bound on the prior's scale.", POSITIVE, needs=LEARNED_PRIOR
    )
    residual_scale_start: float = _of_sere_vae(
        0.73,
        "Where δσ, the posterior's scale / the prior's, starts; the smaller, the more codes say.",
        INSIDE_UNIT_INTERVAL,
    )
    condition_residual_on_latents: bool = _of_sere_vae(
        True,
        "The posterior's residual sees z_{l-1} as well as x, if `couple_prior` lets it.",
        BOOLEAN,
    )
    prior_temperature: float = _of_relaxed_bernoulli_vae(
        1 / 2, "Temperature of the prior's codes.", POSITIVE
    )
    posterior_temperature: float = _of_relaxed_bernoulli_vae(
        2 / 3, "Temperature of the posterior's codes.", POSITIVE
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = python_value(getattr(self, field.name))
            if field.type == tuple[int, ...]:
                value = python_value(tuple(value) if isinstance(value, Iterable) else (value,))
            object.__setattr__(self, field.name, value)
            if message := refusal(f"model.{field.name}", value, SETTINGS[field.name].rule):
                raise ConfigError(message)
        for message in conflicts(self):
            raise ConfigError(f"config.model.{message}")

    @property
    def latents_per_layer(self) -> tuple[int, ...]:
        """Number of latents of each layer, where codes are vectors."""
        return self.latent_sizes or self.latent_shape * self.num_layers

    @property
    def has_latents(self) -> bool:
        """Whether there are codes; without them the ELBO is the exact log-likelihood."""
        return self.latent_shape != NO_LATENTS

    @property
    def has_shared_encoder(self) -> bool:
        """Whether one encoder of the image serves all layers."""
        return self.has_latents and self.encoder == "shared"

    @property
    def has_flows(self) -> bool:
        """Whether the data layers are flows, whose data space is that of logits."""
        return self.data_layer == FLOW

    @property
    def applies_layers_in_turn(self) -> bool:
        """Whether layers that could be batched are applied one after another all the same.

        Batched over layers, convolutions with different kernels are slow on CPUs; `Hierarchy` does
        batch them on GPUs. Products of large matrices with different weights gain nothing.
        """
        return self.network == "resnet" or self.has_flows

    @property
    def drops_in_training(self) -> bool:
        """Whether training drops hidden units or pixels of previous blocks."""
        return bool(self.dropout or self.generative_dropout or self.block_dropout)

    @property
    def residual_sees_latents(self) -> bool:
        """Whether the posterior's residual sees z_{l-1}: never without `couple_prior`."""
        return self.couple_prior and self.condition_residual_on_latents


SETTINGS = settings_of(ModelConfig)
ModelConfig.__doc__ = f"{ModelConfig.__doc__}\n    Attributes:\n" + "".join(
    f"        {name}: {declared.meaning}\n" for name, declared in SETTINGS.items()
)


def model_config(config: Any) -> ModelConfig:
    """Reads and checks the model part of a configuration.

    Args:
        config: a `ModelConfig`, or an experiment's configuration (a ConfigDict or a mapping)
            whose field `model` holds the fields of `ModelConfig`.

    Raises:
        ConfigError: a field is unknown, missing or has an impossible value.
    """
    if isinstance(config, ModelConfig):
        return config
    if not (hasattr(config, "keys") and hasattr(config.get("model"), "keys")):
        raise ConfigError("config.model is missing; give {'model': {...}}, or a ModelConfig")
    values = dict(config["model"])
    for name in values:
        if name not in SETTINGS:
            raise ConfigError(f"config.model.{name} is not a field{nearest(name, SETTINGS)}")
    for field in dataclasses.fields(ModelConfig):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ConfigError(f"config.model.{field.name} is missing; it has no default")
    return ModelConfig(**values)


def choose(field: str, name: str, choices: Mapping[str, Any]) -> Any:
    """The entry of `choices` called `name`.

    Raises:
        ConfigError: there is none; the message names the choices.
    """
    if name not in choices:
        way_out = nearest(name, choices) or "; if it is yours, import its file first"
        raise ConfigError(
            f"config.model.{field}={name!r} is not one of {', '.join(sorted(choices))}{way_out}"
        )
    return choices[name]
