"""Sampling by other implementations: what is timed is a known part of it."""

import numpy as np
import pytest

from benchmarks import flows

torch = pytest.importorskip("torch")
flow_sampling = pytest.importorskip("benchmarks.flow_sampling")
pytestmark = pytest.mark.slow

SIZES = flows.Sizes(num_values=7, width=16, num_flows=3, batch_size=1)


def create(name):
    torch.manual_seed(0)
    pytest.importorskip(name)
    flow = getattr(flows, f"create_{name}")(SIZES).eval()
    for parameter in flow.parameters():
        parameter.requires_grad_(False).add_(0.3 * torch.randn_like(parameter))
    return flow


def invert(name, flow, noise, passes):
    return getattr(flow_sampling, f"invert_{name}")(flow, noise, passes)


def to_noise(name, flow, x):
    return flow.transform_to_noise(x) if name == "nflows" else flow(x).out


@pytest.mark.parametrize("name", ["nflows", "pythae"])
def test_with_all_passes_the_result_is_what_the_flow_maps_to_the_noise(name):
    flow, noise = create(name), torch.randn(5, SIZES.num_values)
    x = invert(name, flow, noise, SIZES.num_values)
    np.testing.assert_allclose(to_noise(name, flow, x), noise, atol=1e-4)
    few = invert(name, flow, noise, 2)
    assert (to_noise(name, flow, few) - noise).abs().max() > 0.01


@pytest.mark.parametrize("name", ["nflows", "pythae"])
def test_each_network_makes_as_many_passes_as_it_is_told(name):
    flow, calls = create(name), []
    (made,) = {type(module) for module in flow.modules() if type(module).__name__ == "MADE"}
    for module in flow.modules():
        if isinstance(module, made):
            module.register_forward_hook(lambda *_: calls.append(1))
    invert(name, flow, torch.randn(2, SIZES.num_values), 4)
    assert len(calls) == 4 * SIZES.num_flows


@pytest.mark.parametrize("name", ["nflows", "pythae"])
def test_the_figure_is_extrapolated_to_all_passes(monkeypatch, name):
    pytest.importorskip(name)
    seconds = iter([0.0, 3.0])
    monkeypatch.setattr("benchmarks.harness.time.perf_counter", lambda: next(seconds))
    monkeypatch.setattr(flow_sampling, "PART", 16)
    sizes = flows.Sizes.choose(quick=True)
    passes = sizes.num_values // 16
    figure = getattr(flow_sampling, name)(quick=True, num_images=6)()
    assert figure == pytest.approx(1000 * 3.0 * sizes.num_values / passes / 6)
