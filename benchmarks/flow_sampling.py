"""Sampling by the flows of other implementations, in PyTorch.

They invert each of the ten layers, of D values, by D passes of its whole network, all of which cost
the same: for 100 images of 3072 values that takes many minutes. So a step makes the first passes of
every layer, one in `PART` of all, and its figure is its time multiplied by D / passes.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks import flows, pytorch
from benchmarks.flows import Sizes
from benchmarks.harness import Step, scaled

PART = 100


def nflows(quick: bool, num_images: int) -> Step:
    """Milliseconds an image, extrapolated, of the flow of nflows."""
    sizes = Sizes.choose(quick)
    flow = flows.create_nflows(sizes)
    return _step(lambda noise, passes: invert_nflows(flow, noise, passes), flow, sizes, num_images)


def pythae(quick: bool, num_images: int) -> Step:
    """Milliseconds an image, extrapolated, of the flow of pythae."""
    sizes = Sizes.choose(quick)
    flow = flows.create_pythae(sizes)
    return _step(lambda noise, passes: invert_pythae(flow, noise, passes), flow, sizes, num_images)


def invert_nflows(flow: Any, noise: Tensor, passes: int) -> Tensor:
    """Its `AutoregressiveTransform.inverse`, layer after layer, with another number of passes.

    Args:
        flow: from `flows.create_nflows`.
        noise: [B, D].
        passes: of each network; with D of them the result is a sample.
    """
    x = noise
    for layer in reversed(flow._transform._transforms):
        if not hasattr(layer, "autoregressive_net"):
            x, _ = layer.inverse(x)
            continue
        target, x = x, torch.zeros_like(x)
        for _ in range(passes):
            x, _ = layer._elementwise_inverse(target, layer.autoregressive_net(x, None))
    return x


def invert_pythae(flow: Any, noise: Tensor, passes: int) -> Tensor:
    """The same of `flows.create_pythae`: its own `inverse`, which makes `flow.input_dim` passes."""
    flow.input_dim = passes
    return flow.inverse(noise).out


def _step(invert, flow, sizes, num_images):
    flow.to(pytorch.device()).eval()
    noise = torch.randn(num_images, sizes.num_values, device=pytorch.device())
    passes = max(1, sizes.num_values // PART)

    @torch.no_grad()
    def step():
        invert(noise, passes)
        pytorch.wait()

    return scaled(step, 1000 * sizes.num_values / passes / num_images)
