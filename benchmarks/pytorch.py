"""The MLP SeRe-VAE and residual encoders as they are written in PyTorch: a module a layer.

Imports PyTorch, so that other modules import this one when they build a contender. All runs on
`device()`; a step returns when the device is done.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sere_jax import ModelConfig


@functools.cache
def device() -> torch.device:
    """The GPU if JAX computes on one and PyTorch sees it, else the CPU.

    On a GPU products of float32 are TF32, as JAX has them.
    """
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def wait() -> None:
    """Returns when the device has done all that it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


class Features(nn.Sequential):
    """An image, or a block, [B, inputs] to the offset [B, hidden_size] of a `Network`."""

    def __init__(self, inputs: int, hidden_size: int, num_hidden_layers: int):
        layers: list[nn.Module] = []
        for _ in range(num_hidden_layers):
            layers += [nn.Linear(inputs, hidden_size), nn.ELU()]
            inputs = hidden_size
        super().__init__(*layers, nn.Linear(inputs, hidden_size))


class Network(nn.Module):
    """Codes [B, N], and an offset if it takes one, to parameters [B, outputs]."""

    def __init__(
        self,
        num_latents: int,
        hidden_size: int,
        outputs: int,
        *,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        takes_offset: bool = False,
    ):
        super().__init__()
        self.activation = activation
        self.codes = nn.Linear(num_latents, hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size, bias=not takes_offset)
        self.head = nn.Linear(hidden_size, outputs)

    def forward(self, z: Tensor, offset: Tensor | None = None) -> Tensor:
        """The parameters."""
        hidden = self.hidden(self.activation(self.codes(z)))
        if offset is not None:
            hidden = hidden + offset
        return self.head(functional.elu(hidden))


class Layer(nn.Module):
    """Prior, posterior, bijector, data layer and encoder of one layer."""

    def __init__(self, config: ModelConfig, num_pixels: int, block_size: int):
        super().__init__()
        (num_latents,), size = config.latent_shape, config.hidden_size
        self.config = config
        self.encoder = Features(num_pixels, size, config.num_hidden_layers)
        self.prior = Network(num_latents, size, 2 * num_latents)
        self.posterior = Network(num_latents, size, 2 * num_latents, takes_offset=True)
        self.bijector = Network(num_latents, size, 3 * num_latents)
        self.direction_start = nn.Parameter(0.3 * torch.randn(num_latents))
        self.observed = Features(block_size, size, config.num_hidden_layers - 1)
        self.data = Network(num_latents, size, block_size, activation=functional.elu)
        self.data_residual = Network(
            num_latents, size, block_size, activation=functional.elu, takes_offset=True
        )
        low, high = config.sigma_min, config.sigma_max
        self.prior_start = _logit((1.0 - low) / (high - low))
        self.residual_start = _logit(config.residual_scale_start)

    def forward(
        self, x: Tensor, previous: Tensor, block: Tensor, z: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of inference, and the block's likelihood.

        Args:
            x: [B, pixels].
            previous: [B, block_size], the block before.
            block: [B, pixels of the block].
            z: [B, N], the code before.
            noise: [B, N], standard normal.

        Returns:
            The code [B, N]; log p(x_l | z_l, x_{l-1}) [B] and KL [B] in nats.
        """
        low, high = self.config.sigma_min, self.config.sigma_max
        mean, raw_scale = self.prior(z).chunk(2, dim=-1)
        scale = low + (high - low) * torch.sigmoid(raw_scale + self.prior_start)
        shift, raw_narrowing = self.posterior(z, self.encoder(x)).chunk(2, dim=-1)
        log_narrowing = functional.logsigmoid(raw_narrowing + self.residual_start)
        narrowing = log_narrowing.exp()
        epsilon = shift + narrowing * (mean + scale * noise)
        kl = (
            0.5 * ((shift + (narrowing - 1.0) * mean) / scale).square()
            + 0.5 * (narrowing.square() - 1.0)
            - log_narrowing
        ).sum(-1)
        z = self._bijector(z, epsilon)
        logits = self.data(z) + self.data_residual(z, self.observed(previous))
        logits = logits[:, : block.shape[1]]
        return z, -functional.softplus((1.0 - 2.0 * block) * logits).sum(-1), kl

    def _bijector(self, z, epsilon):
        shift, diagonal, direction = self.bijector(z).chunk(3, dim=-1)
        direction = torch.tanh(direction + self.direction_start) / math.sqrt(z.shape[-1])
        projection = (direction * epsilon).sum(-1, keepdim=True)
        return shift + 2.0 * torch.sigmoid(diagonal) * epsilon + direction * projection


class SeReVAE(nn.Module):
    """The MLP SeRe-VAE with the default couplings, runs of pixels and Bernoulli data layers."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        num_pixels = math.prod(config.data_shape)
        self.block_size = -(-num_pixels // config.num_layers)
        self.num_latents = config.latent_shape[0]
        self.layers = nn.ModuleList(
            Layer(config, num_pixels, self.block_size) for _ in range(config.num_layers)
        )

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) [B] and KL [B] in nats, for x [B, pixels] and noise [B, L, N]."""
        z = x.new_zeros(len(x), self.num_latents)
        previous = x.new_zeros(len(x), self.block_size)
        log_likelihoods, kls = [], []
        for index, (layer, block) in enumerate(
            zip(self.layers, x.split(self.block_size, dim=1), strict=True)
        ):
            z, log_likelihood, kl = layer(x, previous, block, z, noise[:, index])
            previous = block
            log_likelihoods.append(log_likelihood)
            kls.append(kl)
        return torch.stack(log_likelihoods).sum(0), torch.stack(kls).sum(0)


class ResidualBlock(nn.Module):
    """x + f(x) on maps [B, channels, h, w]."""

    def __init__(self, size: int):
        super().__init__()
        self.first = nn.Conv2d(size, size, 3, padding=1)
        self.second = nn.Conv2d(size, size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        return x + self.second(functional.elu(self.first(functional.elu(x))))


class ResNetEncoders(nn.Module):
    """The encoders of all layers of the ResNet SeRe-VAE."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.factor = config.data_shape[0] // config.latent_shape[0]
        channels, size = config.data_shape[2] * self.factor**2, config.hidden_size
        self.encoders = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, size, 3, padding=1),
                *(ResidualBlock(size) for _ in range(config.num_hidden_layers)),
            )
            for _ in range(config.num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features [L, B, hidden_size, h, w] of images [B, channels, height, width]."""
        maps = functional.pixel_unshuffle(x, self.factor)
        maps = maps.contiguous(memory_format=torch.channels_last)
        return torch.stack([encoder(maps) for encoder in self.encoders])


def train_step(
    model: SeReVAE,
    images: np.ndarray,
    training: Any,
    *,
    updates: int,
    compiled: bool,
    bfloat16: bool = False,
) -> Callable[[], None]:
    """Updates by Adam with clipping, averages and metrics, of pixels binarized afresh.

    Args:
        model: the model.
        images: [num, h, w, 1] uint8.
        training: `config.training`.
        updates: how many.
        compiled: whether the model goes through `torch.compile`.
        bfloat16: whether the pass forward is one of `torch.autocast`.
    """
    probabilities = torch.from_numpy(images.reshape(len(images), -1)).to(device()) / 255.0
    parameters = list(model.to(device()).parameters())
    optimizer = torch.optim.Adam(parameters, training.learning_rate, fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.ema_decay))
    infer = torch.compile(model) if compiled else model
    totals = torch.zeros(4, device=device())

    def step():
        order = torch.randperm(len(images), device=device())[: updates * training.batch_size]
        for batch in order.split(training.batch_size):
            x = torch.bernoulli(probabilities[batch])
            noise = torch.randn(len(batch), len(model.layers), model.num_latents, device=device())
            with torch.autocast(device().type, torch.bfloat16, enabled=bfloat16):
                log_likelihood, kl = (values.float().mean() for values in infer(x, noise))
            loss = kl - log_likelihood
            optimizer.zero_grad()
            loss.backward()
            norm = clip_grad_norm_(parameters, training.max_gradient_norm)
            optimizer.step()
            average.update_parameters(model)
            totals.add_(torch.stack([-loss.detach(), log_likelihood.detach(), kl.detach(), norm]))
        wait()

    return step


def gradient_step(model: ResNetEncoders, x: np.ndarray, *, compiled: bool) -> Callable[[], None]:
    """The gradient of the mean square of the features of x [B, height, width, channels]."""
    images = torch.from_numpy(x).to(device()).permute(0, 3, 1, 2)
    model = model.to(device(), memory_format=torch.channels_last)
    encode = torch.compile(model) if compiled else model

    def step():
        model.zero_grad()
        encode(images).square().mean().backward()
        wait()

    return step


def optimizer_step(
    model: nn.Module, loss: Callable[[], Tensor], *, learning_rate: float, updates: int
) -> Callable[[], None]:
    """Plain updates by Adam of a model on `device()`."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)

    def step():
        for _ in range(updates):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        wait()

    return step


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)
