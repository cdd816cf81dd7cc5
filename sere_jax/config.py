"""The model's configuration: one frozen record, checked before anything is traced."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, no_type_check

NO_LATENTS = (0,)
FLOW = "masked_autoregressive_flow"
OTHER_SYSTEMS = ("ladder_vae", "iaf_vae", "relaxed_bernoulli_vae")
OF_SERE_VAE = (
    "partition",
    "context",
    "data_context",
    "couple_prior",
    "couple_bijector",
    "couple_data",
    "couple_data_to_prior",
    "bijector",
    "carry_start",
    "prior",
    "network",
    "encoder",
    "num_joint_layers",
    "dropout",
    "rematerialize",
    "sigma_min",
    "sigma_max",
    "residual_scale_start",
    "condition_residual_on_latents",
)
OF_RELAXED_BERNOULLI_VAE = ("prior_temperature", "posterior_temperature")


class ConfigError(ValueError):
    """An impossible configuration. The message is one line: field, value, choices, way out."""


@no_type_check  # by other code than its own, in tests: it says more
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What `config.model` of an experiment says, checked and hashable.

    Numbers and shapes may be NumPy's; they become Python's.

    Attributes:
        data_shape: (height, width, channels) of one image.
        num_layers: L, the number of blocks of x and of latent layers.
        latent_shape: shape of the latent code of one layer: (10,), or (8, 8, 2) for maps; (0,) for
            none at all, which leaves the data layers: a plain flow, say.
        system: `sere_vae`, the hierarchy of the paper; or one that it is compared with,
            `ladder_vae`, `iaf_vae` or `relaxed_bernoulli_vae`, for which there are no couplings.
        latent_sizes: how many of the codes of `latent_shape` each layer has; (): all of them.
        partition: how x is cut into L blocks: `raster`, `checkerboard` or `tiles`.
        context: k, every layer sees the codes z_{l-k} .. z_{l-1}; 1 is the paper.
        data_context: j, a data layer sees the blocks x_{l-j} .. x_{l-1}, and so do priors with
            `couple_data_to_prior`; 1 is the paper, L is all.
        couple_prior: prior and posterior layers see the previous codes.
        couple_bijector: bijective layers see the previous codes.
        couple_data: data layers see the previous blocks.
        couple_data_to_prior: prior and posterior layers see the previous blocks too.
        bijector: name of the bijective layer.
        data_layer: name of the data layer.
        data_scale: standard deviation of `gaussian` data; 0: learned, pixel by pixel.
        num_mixtures: components of `discretized_logistic_mixture`.
        num_flows: autoregressive flows of `masked_autoregressive_flow`, in each layer, and of the
            posterior of `iaf_vae`.
        flow_hidden_size: width of the masked networks of `masked_autoregressive_flow`, which have
            `num_hidden_layers`; those of `iaf_vae` and of bijectors have `hidden_size`, and one
            layer fewer.
        flow_direct_connections: the masked networks of `masked_autoregressive_flow` are also linear
            in what they see (Germain et al. 2015, section 4.2), and its flows follow the linear
            Gaussian autoregression of the images that `init` is given.
        prior: `gaussian`, or `standard_normal`: ε_l ~ N(0, I) whatever z_{l-1} is.
        network: family of the neural networks: `mlp`, `resnet`, or `linear` for affine maps.
        encoder: `independent`, one of each layer's own, as in the paper; or `shared`, one of the
            image that is refined from layer L to layer 1.
        hidden_size: width of their hidden layers, or channels of their maps.
        num_hidden_layers: number of hidden layers, at least 2; an encoder of the whole image of
            `sere_vae` has one more. Of `resnet` all but the first are residual blocks.
        num_joint_layers: residual hidden layers more that a data layer of `mlp` has where codes and
            previous blocks have met.
        dropout: probability that a hidden unit of the MLPs that read x or its blocks is dropped,
            in training alone; of `mlp`.
        rematerialize: compute hidden layers anew in the backward pass instead of keeping them:
            less memory, about a third more work.
        sigma_min: lower bound on the prior's scale (0: none but float32's).
        sigma_max: upper bound on the prior's scale.
        carry_start: a in [0, 1), how much of z_{l-1} the rank-one affine bijector first hands on:
            z_l = a z_{l-1} + √(1 - a²) ε_l, near enough, whose variance is σ² (1 - a^(2l)), as
            z_0 = 0, with the prior's scale σ. 0: nothing, it has to learn to.
        prior_temperature: of the `relaxed_bernoulli_vae`.
        posterior_temperature: of the `relaxed_bernoulli_vae`.
        residual_scale_start: what the posterior's scale relative to the prior's, δσ, starts near;
            the smaller, the more the codes say of the image at first.
        condition_residual_on_latents: the posterior's residual sees z_{l-1} as well as x, if
            `couple_prior` lets it.
    """

    data_shape: tuple[int, ...]
    num_layers: int
    latent_shape: tuple[int, ...]
    system: str = "sere_vae"
    latent_sizes: tuple[int, ...] = ()
    partition: str = "raster"
    context: int = 1
    data_context: int = 1
    couple_prior: bool = True
    couple_bijector: bool = True
    couple_data: bool = True
    couple_data_to_prior: bool = False
    bijector: str = "rank_one_affine"
    carry_start: float = 0.0
    data_layer: str = "bernoulli"
    data_scale: float = 0.0
    num_mixtures: int = 10
    num_flows: int = 2
    flow_hidden_size: int = 1024
    flow_direct_connections: bool = False
    prior: str = "gaussian"
    network: str = "mlp"
    encoder: str = "independent"
    hidden_size: int = 200
    num_hidden_layers: int = 2
    num_joint_layers: int = 0
    dropout: float = 0.0
    rematerialize: bool = False
    sigma_min: float = 0.1
    sigma_max: float = 2.0
    residual_scale_start: float = 0.73
    condition_residual_on_latents: bool = True
    prior_temperature: float = 1 / 2
    posterior_temperature: float = 2 / 3

    def __post_init__(self):
        for field in [field.name for field in dataclasses.fields(self)]:
            value = python_value(getattr(self, field))
            if field in ("data_shape", "latent_shape", "latent_sizes"):
                value = python_value(tuple(value) if isinstance(value, Iterable) else (value,))
            object.__setattr__(self, field, value)
        _require_positive_ints("data_shape", self.data_shape, length=3)
        if self.latent_shape != NO_LATENTS:
            _require_positive_ints("latent_shape", self.latent_shape)
        for field in (
            "num_layers",
            "context",
            "data_context",
            "hidden_size",
            "num_hidden_layers",
            "num_mixtures",
            "num_flows",
            "flow_hidden_size",
        ):
            _require_positive_ints(field, (getattr(self, field),), shown=getattr(self, field))
        joint = self.num_joint_layers
        if isinstance(joint, bool) or not isinstance(joint, int) or joint < 0:
            raise ConfigError(f"config.model.num_joint_layers={joint!r} must be a whole number")
        if joint and not (self.couple_data and self.data_layer != FLOW):
            raise ConfigError(
                f"config.model.num_joint_layers={joint} needs a data layer whose networks see "
                "previous blocks; set it to 0, or couple_data=True without flows"
            )
        for field in (
            "couple_prior",
            "couple_bijector",
            "couple_data",
            "couple_data_to_prior",
            "condition_residual_on_latents",
            "rematerialize",
            "flow_direct_connections",
        ):
            value = getattr(self, field)
            if not isinstance(value, bool):
                raise ConfigError(f"config.model.{field}={value!r} must be True or False")
        if self.flow_direct_connections and not self.has_flows:
            raise ConfigError(
                "config.model.flow_direct_connections=True means nothing to the data layer "
                f"{self.data_layer!r}; set it to False, or choose data_layer={FLOW!r}"
            )
        if self.num_hidden_layers < 2:
            raise ConfigError(
                f"config.model.num_hidden_layers={self.num_hidden_layers} must be at least 2"
            )
        for field in ("context", "data_context"):
            value = getattr(self, field)
            if value > self.num_layers:
                raise ConfigError(
                    f"config.model.{field}={value} exceeds num_layers={self.num_layers}; "
                    f"choose 1 to {self.num_layers}"
                )
        for field in (
            "sigma_min",
            "sigma_max",
            "residual_scale_start",
            "data_scale",
            "carry_start",
            "dropout",
            "prior_temperature",
            "posterior_temperature",
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"config.model.{field}={value!r} must be a number")
        if not 0 <= self.sigma_min < self.sigma_max < 2.0**128:
            raise ConfigError(
                f"config.model.sigma_min={self.sigma_min} and sigma_max={self.sigma_max} must "
                "satisfy 0 <= sigma_min < sigma_max < 2^128, the infinity of float32"
            )
        if not 1e-6 <= self.residual_scale_start <= 1 - 1e-6:
            raise ConfigError(
                f"config.model.residual_scale_start={self.residual_scale_start} must lie between 0 "
                "and 1, by a millionth at least"
            )
        if not 0 <= self.data_scale < 2.0**128:
            raise ConfigError(
                f"config.model.data_scale={self.data_scale} must be a standard deviation above 0, "
                "or 0 to learn it"
            )
        if self.data_scale and self.data_layer != "gaussian":
            raise ConfigError(
                f"config.model.data_scale={self.data_scale} is of no use to the data layer "
                f"{self.data_layer!r}; set it to 0, or choose data_layer='gaussian'"
            )

        if not 0 <= self.carry_start < 1:
            raise ConfigError(
                f"config.model.carry_start={self.carry_start} must be at least 0 and below 1"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"config.model.dropout={self.dropout} must be at least 0 and below 1")
        for field in ("dropout", "num_joint_layers"):
            value = getattr(self, field)
            if value and self.network != "mlp":
                raise ConfigError(
                    f"config.model.{field}={value} means nothing to network={self.network!r}; "
                    "set it to 0, or choose network='mlp'"
                )
        for field in ("prior_temperature", "posterior_temperature"):
            if not 0 < getattr(self, field) < 2.0**128:
                raise ConfigError(f"config.model.{field}={getattr(self, field)} must be above 0")
        self._check_latent_sizes()
        if self.system != "relaxed_bernoulli_vae":
            self._check_unused(OF_RELAXED_BERNOULLI_VAE, "relaxed_bernoulli_vae")
        if self.system in OTHER_SYSTEMS:
            self._check_other_system()
        choose("encoder", self.encoder, dict.fromkeys(("independent", "shared")))
        choose("prior", self.prior, dict.fromkeys(("gaussian", "standard_normal")))
        if self.couple_data_to_prior and (self.prior != "gaussian" or not self.has_latents):
            raise ConfigError(
                "config.model.couple_data_to_prior=True needs a prior with parameters; there is "
                f"none with latent_shape={self.latent_shape} and prior={self.prior!r}: set it to "
                "False"
            )
        if not self.has_latents and self.data_layer != FLOW:
            raise ConfigError(
                f"config.model.latent_shape={NO_LATENTS} (no latents) leaves the data layer "
                f"{self.data_layer!r} without anything to depend on; choose data_layer={FLOW!r}, "
                "or at least one latent"
            )

    def _check_latent_sizes(self):
        sizes = self.latent_sizes
        if not sizes:
            return
        _require_positive_ints("latent_sizes", sizes)
        if len(self.latent_shape) != 1 or self.latent_shape == NO_LATENTS:
            raise ConfigError(
                f"config.model.latent_sizes={sizes} needs codes that are vectors, not latent_shape="
                f"{self.latent_shape}; set it to () or choose ({max(sizes)},)"
            )
        if len(sizes) != self.num_layers or max(sizes) > self.latent_shape[0]:
            raise ConfigError(
                f"config.model.latent_sizes={sizes} must hold num_layers={self.num_layers} numbers "
                f"of at most {self.latent_shape[0]}, as latent_shape={self.latent_shape} says"
            )

    def _check_unused(self, names, system):
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"config.model.{name}={getattr(self, name)!r} means nothing to "
                    f"system={self.system!r}; leave it at {defaults[name]!r}, or choose "
                    f"system={system!r}"
                )

    def _check_other_system(self):
        self._check_unused(OF_SERE_VAE, "sere_vae")
        if len(self.latent_shape) != 1 or not self.has_latents:
            raise ConfigError(
                f"config.model.latent_shape={self.latent_shape} must be a vector such as (30,) "
                f"with system={self.system!r}"
            )
        if self.system != "ladder_vae" and self.num_layers != 1:
            raise ConfigError(
                f"config.model.num_layers={self.num_layers} must be 1 with system={self.system!r}"
            )
        if self.system != "ladder_vae" and self.latent_sizes:
            raise ConfigError(
                f"config.model.latent_sizes={self.latent_sizes} means nothing to "
                f"system={self.system!r}; leave it at () and set latent_shape"
            )

    @property
    def sizes_of_latents(self) -> tuple[int, ...]:
        """Number of codes of each layer, where they are vectors."""
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

        Batched over layers, convolutions with different kernels are slow everywhere, and products
        of large matrices with different weights gain nothing.
        """
        return self.network == "resnet" or self.has_flows

    @property
    def residual_sees_latents(self) -> bool:
        """Whether the posterior's residual sees z_{l-1}: never without `couple_prior`."""
        return self.couple_prior and self.condition_residual_on_latents


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
    if "model" not in config or not hasattr(config["model"], "keys"):
        raise ConfigError("config.model is missing, or does not hold the fields of ModelConfig")
    fields = dict(config["model"])
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in fields:
        if name not in known:
            raise ConfigError(f"config.model.{name} is not a field{nearest(name, known)}")
    required = [
        field.name
        for field in dataclasses.fields(ModelConfig)
        if field.default is dataclasses.MISSING
    ]
    for name in required:
        if name not in fields:
            raise ConfigError(f"config.model.{name} is missing; it has no default")
    return ModelConfig(**fields)


def python_value(value: Any) -> Any:
    """Numbers of NumPy and JAX as Python's; arrays, lists and tuples of them as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(python_value, value)) if isinstance(value, list | tuple) else value


def choose(field: str, name: str, choices: Mapping[str, Any]) -> Any:
    """The entry of `choices` called `name`.

    Raises:
        ConfigError: there is none; the message names the choices.
    """
    if not isinstance(name, str) or name not in choices:
        way_out = nearest(str(name), choices) or "; if it is yours, import its file first"
        raise ConfigError(
            f"config.model.{field}={name!r} is not one of {', '.join(sorted(choices))}{way_out}"
        )
    return choices[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' with the known name closest to `name`, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _require_positive_ints(field, values, *, length=None, shown=None):
    shown = values if shown is None else shown
    if length is not None and len(values) != length:
        raise ConfigError(
            f"config.model.{field}={shown} must have {length} entries: (height, width, channels)"
        )
    if not values or any(
        isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in values
    ):
        raise ConfigError(f"config.model.{field}={shown!r} must hold integers of at least 1")
