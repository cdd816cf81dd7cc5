"""Flows against flowjax, an independent implementation: same weights, same log-probabilities."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.flows.autoregressive import (
    GATE_START,
    MAX_LOG_SCALE,
    GatedAutoregressive,
    MaskedAutoregressive,
)
from sere_jax.flows.coupling import SplineCoupling
from sere_jax.networks.masked import Degrees, MaskedNetwork
from sere_jax.networks.stripes import MaskedKernel, cut_stripes

flowjax = pytest.importorskip("flowjax", reason="an extra: pip install -e '.[test]'")
equinox = pytest.importorskip("equinox")
paramax = pytest.importorskip("paramax")
bijections = pytest.importorskip("flowjax.bijections")


class Standardize(bijections.AbstractBijection):
    """u = (x - m) / s, with our bounded log s."""

    mean: jax.Array
    raw_scale: jax.Array
    shape = ()
    cond_shape = None

    def transform_and_log_det(self, x, condition=None):
        log_scale = MAX_LOG_SCALE * jnp.tanh(self.raw_scale / MAX_LOG_SCALE)
        return (x - self.mean) * jnp.exp(-log_scale), -log_scale

    def inverse_and_log_det(self, y, condition=None):
        log_scale = MAX_LOG_SCALE * jnp.tanh(self.raw_scale / MAX_LOG_SCALE)
        return y * jnp.exp(log_scale) + self.mean, log_scale


class Gate(bijections.AbstractBijection):
    """u = g x + (1 - g) m (Kingma et al. 2016, Eq. 14)."""

    mean: jax.Array
    raw_gate: jax.Array
    shape = ()
    cond_shape = None

    def transform_and_log_det(self, x, condition=None):
        gate = jax.nn.sigmoid(self.raw_gate + GATE_START)
        return gate * x + (1.0 - gate) * self.mean, jnp.log(gate)

    def inverse_and_log_det(self, y, condition=None):
        gate = jax.nn.sigmoid(self.raw_gate + GATE_START)
        return (y - (1.0 - gate) * self.mean) / gate, -jnp.log(gate)


def random_values(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def striped(kernel, num_seen):
    stripes = cut_stripes(num_seen, stripe_size=2)
    dense, staircases = (
        tuple(
            kernel[first(stripe) : last(stripe), ..., stripe.start : stripe.stop]
            for stripe in stripes
        )
        for first, last in (
            (lambda stripe: 0, lambda stripe: stripe.num_dense),
            (lambda stripe: stripe.num_dense, lambda stripe: stripe.num_seen),
        )
    )
    return MaskedKernel(dense, staircases, tuple(map(int, num_seen)), stripes)


def with_weights_of(theirs, condition, dim, kind):
    """Our bijector with the weights and masks of one of flowjax, given the condition."""
    width = theirs.masked_autoregressive_mlp.layers[0].out_features
    ranks = np.arange(width) % (dim - 1) if condition is None else np.arange(width) % dim - 1
    order = np.argsort(ranks, kind="stable")
    hidden = tuple(int(rank) + 1 for rank in ranks[order])  # rank r sees inputs 0..r: degree r + 1
    layers = paramax.unwrap(theirs.masked_autoregressive_mlp).layers
    degrees = Degrees(tuple(range(1, dim + 1)), (hidden,) * (len(layers) - 1))
    # Unmasked weights, so that the masks are ours.
    kernels = [
        np.asarray(layer.weight.args[1]).T for layer in theirs.masked_autoregressive_mlp.layers
    ]
    biases = [np.asarray(layer.bias) for layer in layers]
    offset = None if condition is None else condition @ kernels[0][dim:, order]
    kernels = [kernels[0][:dim, order], kernels[1][order][:, order], kernels[2][order]]
    kernels[-1] = kernels[-1].reshape(-1, dim, 2).swapaxes(1, 2)
    biases = [biases[0][order], biases[1][order], biases[2].reshape(dim, 2).T]
    inputs = np.arange(1, dim + 1)
    seen = (
        np.searchsorted(inputs, hidden, side="right"),
        np.searchsorted(hidden, hidden, side="right"),
        np.searchsorted(hidden, inputs, side="left"),
    )
    kernels = tuple(map(striped, kernels, seen))
    network = MaskedNetwork(kernels, tuple(biases), offset, None, None, degrees)
    return kind(network, (dim,))


@pytest.mark.parametrize(
    "condition", [None, random_values(3, seed=4)], ids=["plain", "conditional"]
)
@pytest.mark.parametrize(
    ("kind", "transformer", "scale"),
    [(MaskedAutoregressive, Standardize, 3), (GatedAutoregressive, Gate, 5)],
)
def test_masked_autoregressive_flows_are_those_of_flowjax(condition, kind, transformer, scale):
    dim = 5
    theirs = bijections.MaskedAutoregressive(
        jax.random.key(0),
        transformer=transformer(jnp.zeros(()), jnp.zeros(())),
        dim=dim,
        cond_dim=None if condition is None else 3,
        nn_width=24,
        nn_depth=2,
    )
    theirs = jax.tree.map(
        lambda leaf: scale * leaf if equinox.is_inexact_array(leaf) else leaf, theirs
    )
    ours, x = with_weights_of(theirs, condition, dim, kind), random_values(7, dim)

    u, log_det = jax.jit(ours.inverse_and_log_det)(x)
    expected = jax.vmap(lambda x: paramax.unwrap(theirs).transform_and_log_det(x, condition))(x)

    log_prob = distrax.MultivariateNormalDiag(jnp.zeros(dim)).log_prob
    np.testing.assert_allclose(u, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        log_prob(u) + log_det, log_prob(expected[0]) + expected[1], rtol=1e-4
    )
    assert np.std(log_det) > 0.1
    back = jax.vmap(lambda u: paramax.unwrap(theirs).inverse(u, condition))(expected[0])
    np.testing.assert_allclose(jax.jit(ours.forward)(u), back, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "halves"),
    [
        ((4,), [np.s_[..., :2], np.s_[..., 2:]]),
        ((2, 5, 1), [np.s_[..., :2, :], np.s_[..., 2:, :]]),
        ((1,), [np.s_[..., :0], np.s_[..., :]]),
    ],
    ids=["vector", "map", "one value"],
)
def test_spline_couplings_are_those_of_flowjax(random_module, shape, halves):
    coupling = SplineCoupling(shape, 16)
    condition, x = random_values(3), 3 * random_values(6, *shape)
    bijector = coupling.apply(random_module(coupling, condition), condition)

    y, log_det = jax.jit(bijector.forward_and_log_det)(x)

    def their_spline(parameters, x):
        """The spline with the knots of distrax, evaluated by flowjax."""
        ours = parameters
        theirs = bijections.RationalQuadraticSpline(knots=7, interval=(-5.0, 5.0))
        theirs = equinox.tree_at(
            lambda spline: (spline.x_pos, spline.y_pos, spline.derivatives),
            theirs,
            (ours._x_pos, ours._y_pos, ours._knot_slopes),
        )
        return theirs.transform_and_log_det(x)

    expected, expected_log_det = jnp.asarray(x), 0.0
    their_splines = their_spline
    for _ in range(x.ndim):
        their_splines = jax.vmap(their_splines)
    steps = reversed(bijector.bijectors)
    for step, (stays, moves) in zip(steps, [halves, halves[::-1]], strict=False):
        moved, log_dets = their_splines(
            step.bijector(step.conditioner(expected[stays])), expected[moves]
        )
        expected = expected.at[moves].set(moved)
        expected_log_det += jnp.sum(log_dets, axis=tuple(range(1, x.ndim)))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_det, expected_log_det, rtol=1e-4, atol=1e-4)
    assert np.std(log_det) > 0.05
