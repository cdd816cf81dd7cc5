"""The linear Gaussian model: the one case whose likelihood and posterior are known exactly.

    ε_l = m_l + M_l z_{l-1} + σ_l e_l           e_l ~ N(0, 1), one latent a layer
    z_l = c_l + C_l z_{l-1} + a_l ε_l
    x_l = b_l + w_l z_l + R_l x_{l-1} + s η_l   η_l ~ N(0, I)

`LinearGaussian.parameters` writes it into the parameters of a `SeReVAE`, so that bounds and
posteriors of the library can be compared with the joint Gaussian of (e, x), in NumPy float64.
"""

import dataclasses
from typing import Any, no_type_check

import jax
import numpy as np

from sere_jax.arrays import as_array, check_values
from sere_jax.config import ConfigError, ModelConfig
from sere_jax.functions import init
from sere_jax.model import LatentVariableModel

BOUNDS = {"prior_scale": (0.0, ModelConfig.sigma_max), "code_gain": (0.22, 2.21)}


@no_type_check  # by other code than its own, in tests: it takes lists
@dataclasses.dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Coefficients of a linear Gaussian SeRe-VAE with L layers and blocks of D values."""

    prior_shift: np.ndarray  # m [L]
    prior_slope: np.ndarray  # M [L]
    prior_scale: np.ndarray  # σ [L], between 0 and 2, the model's `sigma_max`
    code_shift: np.ndarray  # c [L]
    code_slope: np.ndarray  # C [L]
    # a [L], between 0.22 and 2.21, as the bounds of the rank-one affine bijector ask.
    code_gain: np.ndarray
    data_shift: np.ndarray  # b [L, D]
    data_slope: np.ndarray  # w [L, D]
    block_slope: np.ndarray  # R [L, D, D]
    data_scale: float  # s

    def __post_init__(self) -> None:
        """Takes arrays of any byte order, and lists.

        Raises:
            TypeError: a coefficient is no real number.
            ValueError: its shape is not the one above, or it is not finite.
        """
        num_layers, size = np.shape(self.data_shift) if np.ndim(self.data_shift) == 2 else (0, 0)
        shapes = {
            "data_shift": (num_layers, size),
            "data_slope": (num_layers, size),
            "block_slope": (num_layers, size, size),
            "data_scale": (),
        }
        for field in dataclasses.fields(self):
            value = np.asarray(as_array(field.name, getattr(self, field.name)))
            shape = shapes.get(field.name, (num_layers,))
            if value.shape != shape:
                raise ValueError(f"{field.name} has the shape {value.shape}; it must be {shape}")
            check_values(field.name, value, None, "coefficients are finite")
            object.__setattr__(self, field.name, value if shape else value.item())

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.prior_shift)

    def with_uncoupled_prior(self) -> "LinearGaussian":
        """The same p(x) and e with M = 0: the bijector takes over what the prior did (DLGM)."""
        return dataclasses.replace(
            self,
            prior_slope=np.zeros_like(self.prior_slope),
            code_slope=self.code_slope + self.code_gain * self.prior_slope,
        )

    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The joint Gaussian of e and x = μ + A e + noise: μ [LD], A [LD, L], noise [LD, LD]."""
        num_layers, size = self.data_shift.shape
        noises = num_layers * size
        # Affine forms in (1, e_1 .. e_L, η_1 .. η_LD).
        forms = np.eye(1 + num_layers + noises)
        one, latent_noise, data_noise = np.split(forms, [1, 1 + num_layers])
        code, block, blocks = np.zeros(len(forms)), np.zeros((size, len(forms))), []
        for layer in range(num_layers):
            epsilon = (
                self.prior_shift[layer] * one[0]
                + self.prior_slope[layer] * code
                + self.prior_scale[layer] * latent_noise[layer]
            )
            code = (
                self.code_shift[layer] * one[0]
                + self.code_slope[layer] * code
                + self.code_gain[layer] * epsilon
            )
            block = (
                np.outer(self.data_shift[layer], one[0])
                + np.outer(self.data_slope[layer], code)
                + self.block_slope[layer] @ block
                + self.data_scale * data_noise[layer * size : (layer + 1) * size]
            )
            blocks.append(block)
        x = np.concatenate(blocks)
        mean, loadings, noise = np.split(x, [1, 1 + num_layers], axis=1)
        return mean[:, 0], loadings, noise @ noise.T

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Exact log p(x) in nats, [...], of x [..., L, D].

        Raises:
            ValueError: x has another shape, or is not finite.
        """
        mean, loadings, noise = self.moments()
        covariance = loadings @ loadings.T + noise
        deviation = self._blocks(x) - mean
        distance = np.sum(deviation @ np.linalg.inv(covariance) * deviation, axis=-1)
        return -0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1])

    def posterior(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact p(e | x): mean [..., L] for x [..., L, D], and precision [L, L].

        Raises:
            ValueError: x has another shape, or is not finite.
        """
        mean, loadings, noise = self.moments()
        deviation = self._blocks(x) - mean
        weights = np.linalg.solve(noise, loadings)
        precision = np.eye(self.num_layers) + loadings.T @ weights
        return deviation @ weights @ np.linalg.inv(precision), precision

    def mean_field_gap(self) -> float:
        """The least KL(q(e) || p(e | x)) in nats of any q that factorizes over layers.

        The best q has the exact means and the variances 1 / Λ_ll of the posterior's precision Λ
        (Bishop 2006, section 10.1.2), which leaves (Σ log Λ_ll - log det Λ) / 2, whatever x is.
        """
        _, precision = self.posterior(np.zeros_like(self.data_shift))
        return 0.5 * float(np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])

    def _blocks(self, x: Any) -> np.ndarray:
        """x [..., L, D] to [..., LD], float64."""
        x = np.asarray(as_array("x", x), np.float64)
        if x.shape[-2:] != self.data_shift.shape:
            raise ValueError(
                f"x has the shape {x.shape}; it must be (..., L, D) = {self.data_shift.shape}"
            )
        check_values("x", x, None, "data are finite")
        return x.reshape(*x.shape[:-2], self.data_shift.size)

    def config(self, *, couple_prior: bool = True) -> ModelConfig:
        """The configuration of a `SeReVAE` that this is an instance of."""
        num_layers, size = self.data_shift.shape
        return ModelConfig(
            data_shape=(num_layers, size, 1),
            num_layers=num_layers,
            latent_shape=(1,),
            couple_prior=couple_prior,
            data_layer="gaussian",
            data_scale=self.data_scale,
            network="linear",
            hidden_size=1 + size,
            sigma_min=0.0,
        )

    def parameters(self, model: LatentVariableModel, key: jax.Array) -> Any:
        """Parameters of `model` with this generative part and a random inference part.

        Args:
            model: created from `config`.
            key: PRNG key of the posterior and the encoders.

        Raises:
            ConfigError: the model has an uncoupled prior, and M is not 0; or a coefficient is not
                within its bounds.
        """
        config = model.config
        if not config.couple_prior and np.any(self.prior_slope):
            raise ConfigError(
                "config.model.couple_prior=False needs prior_slope=0; see with_uncoupled_prior"
            )
        for name, (low, high) in BOUNDS.items():
            values = getattr(self, name)
            if not np.all((low < values) & (values < high)):
                raise ConfigError(f"{name}={values} must lie between {low} and {high}")
        params = jax.tree.map(np.array, init(model, key))
        layers = params["hierarchy"]["layers"]
        zero = np.zeros(self.num_layers)

        start = (1.0 - config.sigma_min) / (config.sigma_max - config.sigma_min)
        fraction = (self.prior_scale - config.sigma_min) / (config.sigma_max - config.sigma_min)
        prior_bias = np.stack([self.prior_shift, _logit(fraction) - _logit(start)], axis=-1)
        if config.couple_prior:
            prior_slope = np.stack([self.prior_slope, zero], axis=-1)
            _set_affine(layers["prior"]["network"], prior_slope[:, None], prior_bias)
        else:
            layers["prior"]["network"]["constant"][:] = prior_bias

        bijector = layers["bijector"]
        direction = 0.5 * np.ones(self.num_layers)  # tanh u, the rest of the gain is d
        diagonal = self.code_gain - np.tanh(direction) ** 2
        bijector["direction_start"][:] = direction[:, None]
        _set_affine(
            bijector["network"],
            np.stack([self.code_slope, zero, zero], axis=-1)[:, None],
            np.stack([self.code_shift, _logit(diagonal / 2), zero], axis=-1),
        )

        # Half of w is in γ¹(z_l) and half in δγ(x_{l-1}, z_l).
        data = layers["data_layer"]
        half_slope = 0.5 * self.data_slope[:, None]
        _set_affine(data["base"], half_slope, self.data_shift)
        codes, blocks = data["residual"], data["observed"]["Dense_0"]
        slopes = np.concatenate([half_slope, np.swapaxes(self.block_slope, 1, 2)], axis=1)
        _set_affine(codes, slopes, np.zeros_like(self.data_shift))
        blocks["kernel"][:] = np.eye(1 + self.data_shift.shape[1])[1:]
        blocks["bias"][:] = 0.0
        return params


def _set_affine(network: Any, slope: np.ndarray, shift: np.ndarray) -> None:
    """Sets a `LinearNetwork` to slope [L, inputs, outputs] and shift [L, outputs].

    Its first inputs are those of Dense_0; the others come with the offset.
    """
    first, head = network["Dense_0"], network["head"]
    first["kernel"][:] = np.eye(*first["kernel"].shape[1:])
    if "bias" in first:
        first["bias"][:] = 0.0
    head["kernel"][:] = 0.0
    head["kernel"][:, : slope.shape[1]] = slope
    head["bias"][:] = shift


def _logit(probability: Any) -> Any:
    return np.log(probability) - np.log1p(-probability)
