"""Bijective layers against automatic differentiation, and the rank-one affine against distrax."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax.bijector import BIJECTORS, RankOneAffine

SHAPES = [(4,), (2, 1, 2)]


def rank_one_affine(parameter_shape, event_shape):
    generator = np.random.default_rng(0)
    shape = (*parameter_shape, *event_shape)
    return RankOneAffine(
        shift=jnp.asarray(generator.normal(size=shape), jnp.float32),
        diagonal=jnp.asarray(generator.uniform(0.3, 2.0, shape), jnp.float32),
        direction=jnp.asarray(generator.normal(size=shape), jnp.float32),
        event_ndims=len(event_shape),
    )


def random_codes(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@jax.jit
def everything_a_bijector_computes(bijector, x):
    y, forward_log_det = bijector.forward_and_log_det(x)
    back, inverse_log_det = bijector.inverse_and_log_det(y)
    return {
        "y": y,
        "forward": bijector.forward(x),
        "back": back,
        "inverse": bijector.inverse(y),
        "forward_log_det": forward_log_det,
        "forward_log_det_alone": bijector.forward_log_det_jacobian(x),
        "inverse_log_det": inverse_log_det,
        "inverse_log_det_alone": bijector.inverse_log_det_jacobian(y),
    }


def assert_is_bijective_with_correct_log_det(bijector, x, event_shape):
    """Compares with the determinant of the Jacobian of the whole batch, example by example."""
    batch_shape = x.shape[: x.ndim - len(event_shape)]
    size = int(np.prod(event_shape))
    result = everything_a_bijector_computes(bijector, x)

    jacobian = jax.jit(jax.jacobian(lambda x: bijector.forward(x).reshape(-1, size)))(x)
    jacobian = np.asarray(jacobian, np.float64).reshape(-1, size, int(np.prod(batch_shape)), size)
    own = np.moveaxis(np.diagonal(jacobian, axis1=0, axis2=2), -1, 0)
    log_det = np.linalg.slogdet(own).logabsdet.reshape(batch_shape)

    assert result["y"].shape == x.shape
    np.testing.assert_allclose(result["back"], x, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result["forward_log_det"], log_det, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result["inverse_log_det"], -log_det, rtol=1e-3, atol=1e-3)
    assert result["forward_log_det"].shape == result["inverse_log_det"].shape == batch_shape
    np.testing.assert_array_equal(result["forward"], result["y"])
    for name in ("forward_log_det", "inverse_log_det"):
        np.testing.assert_allclose(result[f"{name}_alone"], result[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result["inverse"], result["back"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("event_shape", SHAPES, ids=str)
@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "constant"])
@pytest.mark.parametrize("name", sorted(BIJECTORS))
def test_every_bijective_layer_inverts_itself_and_knows_its_log_determinant(
    tiny_config, random_module, name, conditional, event_shape
):
    config = tiny_config(latent_shape=event_shape, bijector=name, context=2)
    layer = BIJECTORS[name](config)
    window = 3 * random_codes(3, 2, *event_shape) if conditional else None
    bijector = layer.apply(random_module(layer, window), window)

    x = 2 * random_codes(3, *event_shape)[::-1]
    assert_is_bijective_with_correct_log_det(bijector, x, event_shape)


@pytest.mark.parametrize("name", sorted(set(BIJECTORS) - {"identity"}))
def test_a_conditional_bijector_reads_every_code_of_its_window(tiny_config, random_module, name):
    layer = BIJECTORS[name](tiny_config(bijector=name, context=3))
    window, x = random_codes(3, 2), random_codes(2)
    params = random_module(layer, window)

    @jax.jit
    @jax.jacobian
    def jacobian(window):
        return layer.apply(params, window).forward(x)

    assert (np.abs(jacobian(window)).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize("event_shape", [(1,), (2, 3)], ids=str)
def test_rank_one_affine_is_the_diagonal_plus_low_rank_of_distrax(event_shape):
    bijector = rank_one_affine((3,), event_shape)
    x = random_codes(3, *event_shape)

    @jax.jit
    def reference(bijector, x):
        diagonal, direction, shift, x = (
            value.reshape(3, -1)
            for value in (bijector.diagonal, bijector.direction, bijector.shift, x)
        )
        linear = distrax.DiagPlusLowRankLinear(diagonal, direction[..., None], direction[..., None])
        y, log_det = linear.forward_and_log_det(x)
        return y + shift, log_det, linear.inverse(x - shift)

    y, log_det, inverse = reference(bijector, x)

    result = everything_a_bijector_computes(bijector, x)
    np.testing.assert_allclose(result["y"].reshape(3, -1), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["forward_log_det"], log_det, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bijector.inverse(x).reshape(3, -1), inverse, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("parameter_shape", "batch_shape"), [((), (3,)), ((3,), (2, 3)), ((1,), (2, 3))]
)
def test_rank_one_affine_broadcasts_its_parameters(parameter_shape, batch_shape):
    bijector, x = rank_one_affine(parameter_shape, (4,)), random_codes(*batch_shape, 4)

    assert_is_bijective_with_correct_log_det(bijector, x, (4,))


def test_bijectors_pass_through_vmap_and_scan():
    stacked, x = rank_one_affine((3,), (4,)), random_codes(3, 4)
    result = everything_a_bijector_computes(stacked, x)

    @jax.jit
    def map_and_scan(stacked, x):
        def step(carry, inputs):
            bijector, x = inputs
            return carry, (bijector, *bijector.forward_and_log_det(x))

        mapped = jax.vmap(lambda bijector, x: bijector.forward_and_log_det(x))(stacked, x)
        _, (collected, *scanned) = jax.lax.scan(step, None, (stacked, x))
        return mapped, scanned, collected.forward_and_log_det(x)

    for y, log_det in map_and_scan(stacked, x):
        np.testing.assert_allclose(y, result["y"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(log_det, result["forward_log_det"], rtol=1e-5, atol=1e-6)


# Few examples, since every new shape compiles. `derandomize`: CI tries the same ones every time.
few_examples = settings(max_examples=15, deadline=None, derandomize=True, database=None)
event_shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
batch_shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@st.composite
def parameter_batch_shapes(draw, batch_shape):
    """A shape that broadcasts to `batch_shape`: axes may be 1, and leading ones may lack."""
    shape = tuple(draw(st.sampled_from([1, size])) for size in batch_shape)
    return shape[draw(st.integers(0, len(shape))) :]


@st.composite
def rank_one_affines(draw):
    """A bijector with legal parameters up to their bounds, and codes ε."""
    event_shape, batch_shape = draw(event_shapes), draw(batch_shapes)
    shape = (*draw(parameter_batch_shapes(batch_shape)), *event_shape)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    smallest = draw(st.sampled_from([1e-3, 0.1, 0.5]))
    bound = draw(st.sampled_from([0.0, 0.5, 1.0])) / np.sqrt(np.prod(event_shape))
    scale = draw(st.sampled_from([1.0, 100.0]))
    diagonal = generator.choice([smallest, 1.0, 2.0 - smallest], shape)
    direction = bound * generator.choice([-1.0, 1.0], shape)
    bijector = RankOneAffine(
        shift=jnp.asarray(generator.normal(size=shape), jnp.float32),
        diagonal=jnp.asarray(diagonal, jnp.float32),
        direction=jnp.asarray(direction, jnp.float32),
        event_ndims=len(event_shape),
    )
    x = scale * generator.normal(size=(*batch_shape, *event_shape))
    return bijector, x.astype(np.float32)


@given(rank_one_affines())
@few_examples
def test_rank_one_affine_is_accurate_up_to_the_bounds_of_its_parameters(drawn):
    """Errors are those of float32, times the condition number of diag(d) + u uᵀ.

    Rounding z = c + (diag(d) + u uᵀ) ε loses what the inverse cannot bring back: with d = 0.001
    beside a long u it multiplies the error by about a thousand.
    """
    bijector, x = drawn
    event_ndims, epsilon = bijector.event_ndims_in, np.finfo(np.float32).eps
    result = everything_a_bijector_computes(bijector, x)

    batch_shape, size = x.shape[: x.ndim - event_ndims], np.prod(x.shape[x.ndim - event_ndims :])
    shift, diagonal, direction = (
        np.broadcast_to(value, x.shape).reshape(-1, size).astype(np.float64)
        for value in (bijector.shift, bijector.diagonal, bijector.direction)
    )
    matrix = np.einsum("bi,ij->bij", diagonal, np.eye(size))
    matrix += np.einsum("bi,bj->bij", direction, direction)
    expected = shift + np.einsum("bij,bj->bi", matrix, x.reshape(-1, size).astype(np.float64))
    norm = np.linalg.norm(x.reshape(-1, size), axis=-1) + np.linalg.norm(shift, axis=-1)
    condition = np.linalg.cond(matrix)

    def errors(name, reference):
        return np.linalg.norm(np.asarray(result[name]).reshape(-1, size) - reference, axis=-1)

    assert (errors("y", expected) <= 20 * epsilon * norm).all()
    assert (errors("back", x.reshape(-1, size)) <= 20 * epsilon * condition * norm).all()
    log_det = np.linalg.slogdet(matrix).logabsdet.reshape(batch_shape)
    np.testing.assert_allclose(result["forward_log_det"], log_det, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result["inverse_log_det"], -result["forward_log_det"])
    assert result["forward_log_det"].shape == batch_shape


@pytest.mark.slow
@given(
    name=st.sampled_from(sorted(BIJECTORS)),
    event_shape=event_shapes,
    batch_shape=batch_shapes,
    context=st.integers(1, 3),
    scale=st.sampled_from([0.5, 3.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(few_examples, max_examples=8)
def test_every_bijective_layer_agrees_with_the_jacobian_whatever_its_shapes(
    tiny_config, random_module, name, event_shape, batch_shape, context, scale, seed, data
):
    config = tiny_config(latent_shape=event_shape, bijector=name, context=context, hidden_size=4)
    layer = BIJECTORS[name](config)
    generator = np.random.default_rng(seed)
    window_shape = data.draw(
        st.none() | parameter_batch_shapes(batch_shape).map(lambda s: (*s, context, *event_shape))
    )
    window = None if window_shape is None else scale * generator.normal(size=window_shape)
    window = None if window is None else window.astype(np.float32)
    x = generator.normal(size=(*batch_shape, *event_shape)).astype(np.float32)
    size = int(np.prod(event_shape))

    @jax.jit
    def compute(params, window, x):
        bijector = layer.apply(params, window)
        y, log_det = bijector.forward_and_log_det(x)
        jacobian = jax.jacobian(lambda x: bijector.forward(x).reshape(-1, size))(x)
        return y, log_det, *bijector.inverse_and_log_det(y), jacobian

    params = random_module(layer, window, seed=seed)
    y, log_det, back, inverse_log_det, jacobian = compute(params, window, x)

    assert y.shape == back.shape == x.shape
    assert log_det.shape == inverse_log_det.shape == batch_shape
    jacobian = np.asarray(jacobian, np.float64).reshape(-1, size, int(np.prod(batch_shape)), size)
    own = np.moveaxis(np.diagonal(jacobian, axis1=0, axis2=2), -1, 0)
    expected = np.linalg.slogdet(own).logabsdet.reshape(batch_shape)
    condition = np.linalg.cond(own).max()
    np.testing.assert_allclose(log_det, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inverse_log_det, -expected, rtol=1e-4, atol=1e-4)
    largest = max(1.0, np.abs(x).max(), np.abs(y).max())
    np.testing.assert_allclose(back, x, rtol=0, atol=3e-6 * condition * largest)


@pytest.mark.parametrize("carry_start", [0.0, 0.9])
@pytest.mark.parametrize("low", [0.0, 0.3])
def test_the_diagonal_starts_where_it_did_and_stays_above_its_bound(
    tiny_config, random_module, low, carry_start
):
    config = tiny_config(bijector_diagonal_min=low, carry_start=carry_start)
    layer = BIJECTORS["rank_one_affine"](config)
    window = np.random.default_rng(0).normal(size=(400, 1, 2)).astype(np.float32)

    params = random_module(layer, window)
    diagonal = layer.apply(jax.tree.map(lambda leaf: 30 * leaf, params), window).diagonal
    assert low <= diagonal.min() < low + 1e-2 and 2 - 1e-2 < diagonal.max() <= 2
    start = layer.apply(jax.tree.map(np.zeros_like, params), window).diagonal
    np.testing.assert_allclose(start, np.sqrt(1 - carry_start**2), rtol=1e-5)
