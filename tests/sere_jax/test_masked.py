"""Masked networks: what depends on what, by automatic differentiation; inverses in one pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.networks.masked import MADE, Degrees, spread_degrees
from sere_jax.networks.products import product

CASES = {
    "one input": (1, (4,), True, None, False, 1),
    "one hidden layer": (5, (16,), False, None, False, 128),
    "reversed": (5, (16,), True, None, True, 128),
    "two hidden layers": (6, (20, 15), True, None, True, 2),
    "random degrees": (6, (24, 20, 24), True, 2, False, 2),
    "narrower than the data": (12, (5, 4), False, None, False, 3),
}


@pytest.fixture(params=[False, True], ids=["", "direct"])
def direct(request):
    """Whether there are direct connections."""
    return request.param


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, random_module, direct):
    """Degrees, a condition or None, and the function (condition) -> network."""
    num_inputs, widths, conditional, seed, is_reversed, stripe_size = request.param
    degrees = spread_degrees(num_inputs, widths, conditional=conditional)
    if seed is not None:
        degrees = dataclasses.replace(degrees, hidden=random_degrees(num_inputs, widths, seed))
    degrees = degrees.reversed() if is_reversed else degrees
    condition = np.float32([0.3, -1.0, 0.7]) if conditional else None
    made = MADE(degrees, num_parameters=2, stripe_size=stripe_size, direct=direct)
    params = jax.tree_util.tree_map_with_path(alive, random_module(made, condition))
    return degrees, condition, lambda condition: made.apply(params, condition)


def random_degrees(num_inputs, widths, seed):
    """Those of hidden layers, drawn from 0 to D - 1, in rising order; 0 is among them."""
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, num_inputs, width - 1) for width in widths)
    return tuple((0, *map(int, np.sort(degrees))) for degrees in drawn)


def alive(path, leaf):
    """Positive biases: with random ones units of narrow layers may be 0 for every input."""
    return np.abs(leaf) if path[-1].key.startswith("bias") else leaf


def numbers(*shape):
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def product_of_masks(degrees, direct):
    """Number of paths from each input to each output, [D, D], from the definition of MADE."""
    layers = [degrees.inputs, *degrees.hidden]
    paths = np.eye(len(degrees.inputs), dtype=int)
    for before, after in zip(layers, layers[1:], strict=False):
        paths = paths @ np.array([[int(b <= a) for a in after] for b in before])
    paths = paths @ np.array([[int(h < d) for d in degrees.inputs] for h in degrees.hidden[-1]])
    return paths + direct * np.less.outer(degrees.inputs, degrees.inputs)


def test_the_jacobian_is_zero_where_the_product_of_the_masks_is(case, direct):
    degrees, condition, network = case
    num_inputs = len(degrees.inputs)
    jacobians = jax.jit(jax.vmap(jax.jacobian(network(condition))))(3 * numbers(200, num_inputs))

    reached = (np.asarray(jacobians) != 0).any(axis=(0, 1)).T  # [inputs, outputs]

    paths = product_of_masks(degrees, direct)
    np.testing.assert_array_equal(reached, paths > 0)
    earlier = np.less.outer(degrees.inputs, degrees.inputs)
    assert not paths[~earlier].any()
    first, last = degrees.order[0], degrees.order[-1]
    assert (paths[:, last] > 0).sum() == num_inputs - 1
    assert num_inputs == 1 or paths[first].any()


def test_every_output_depends_nonlinearly_on_the_condition(case):
    _, condition, network = case
    if condition is None:
        return
    x = numbers(len(network(condition).degrees.inputs))
    jacobian = jax.jit(jax.vmap(jax.jacobian(lambda condition: network(condition)(x))))
    changes = np.asarray(jacobian(3 * numbers(100, 3)))
    assert (np.abs(changes).max(axis=0) > 1e-3).all()
    assert (np.ptp(changes, axis=0) > 1e-3).all()


def test_solving_in_one_pass_is_applying_the_network_once_an_input(case):
    degrees, condition, network = case
    network = network(condition)
    u = numbers(3, len(degrees.inputs))

    def invert(u, parameters):
        return jnp.tanh(parameters[..., 0]) + u * jax.nn.sigmoid(parameters[..., 1])

    x = np.zeros_like(u)
    for index in degrees.order:
        x[:, index] = invert(u, jnp.moveaxis(network(x), -2, -1))[:, index]

    np.testing.assert_allclose(jax.jit(lambda u: network.solve(invert, u))(u), x, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "hidden", "message"),
    [
        ((1, 3), ((0,),), r"\(1, 3\) is not a permutation of 1 to 2"),
        ((2, 1), ((2,),), r"\(2,\) must lie from 0 to 1"),
        ((2, 1), ((0,), ()), r"\(\) must lie from 0 to 1"),
        ((3, 1, 2), ((1, 0),), r"\(1, 0\) must rise"),
    ],
)
def test_impossible_degrees_are_refused(inputs, hidden, message):
    with pytest.raises(ValueError, match=message):
        Degrees(inputs, hidden)


def test_the_gradient_of_the_product_is_that_of_automatic_differentiation():
    x, kernel, cotangent = numbers(2, 3, 5), numbers(5, 2, 4), numbers(2, 3, 2, 4)
    (value, ours), (expected_value, expected) = (
        (lambda value, pull_back: (value, pull_back(cotangent)))(*jax.vjp(multiply, x, kernel))
        for multiply in (
            lambda x, kernel: product(x, kernel, None),
            lambda x, kernel: jnp.tensordot(x, kernel, 1),
        )
    )
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for found, gradient in zip(ours, expected, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_direct_connections_start_at_zero_and_are_linear(case, direct):
    degrees, condition, network = case
    network, x = network(condition), 3 * numbers(4, len(degrees.inputs))
    if not direct:
        return
    without = dataclasses.replace(network, direct=None)
    earlier = np.less.outer(degrees.inputs, degrees.inputs)
    kernel = jax.jit(jax.jacobian(lambda x: network(x) - without(x)))(x[0])  # [P, D, D]
    assert (np.abs(kernel) > 1e-3).any(axis=0).T[earlier].all()
    assert (np.asarray(kernel)[:, ~earlier.T] == 0).all()
    np.testing.assert_allclose(
        network(x) - without(x), np.einsum("pdi,ni->npd", kernel, x), atol=2e-4
    )

    made = MADE(degrees, num_parameters=2, direct=True)
    fresh = made.apply(made.init(jax.random.key(0), condition), condition)
    np.testing.assert_array_equal(fresh(x), dataclasses.replace(fresh, direct=None)(x))


@pytest.mark.parametrize("reverse", [False, True])
def test_stripes_are_the_one_product_with_the_whole_masked_kernel(random_module, reverse):
    degrees = spread_degrees(12, (20, 17), conditional=False)
    degrees = degrees.reversed() if reverse else degrees
    made = MADE(degrees, num_parameters=2, stripe_size=3)
    network, x = made.apply(random_module(made)), numbers(7, 12)

    hidden, sizes = x[:, degrees.order], (12, 20, 17)
    layers = [np.sort(degrees.inputs), *map(np.array, degrees.hidden)]
    masks = [np.less_equal.outer(*layers[:2]), np.less_equal.outer(*layers[1:])]
    masks.append(np.broadcast_to(np.less.outer(layers[2], layers[0])[:, None], (17, 2, 12)))
    for kernel, bias, mask, size in zip(network.kernels, network.biases, masks, sizes, strict=True):
        full = np.asarray(kernel.full(size))
        np.testing.assert_array_equal(full != 0, mask)
        assert len(kernel.stripes) == 4
        kept = sum(part.size for part in (*kernel.dense, *kernel.staircase))
        assert kept < 0.8 * full.size
        hidden = np.tensordot(hidden, full, 1) + (bias if mask.ndim == 2 else 0)
        hidden = np.maximum(hidden, 0) if mask.ndim == 2 else hidden
    expected = hidden[..., ::-1] if reverse else hidden
    np.testing.assert_allclose(network(x), expected + network.biases[-1], rtol=1e-4, atol=1e-4)
