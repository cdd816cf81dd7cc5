"""Flows as data layers: densities against automatic differentiation, scipy and integration."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import sere_jax
from sere_jax.data_layer import create_data_layer
from sere_jax.flows.autoregressive import ActivationNorm, MaskedAutoregressiveFlows
from sere_jax.flows.data_layer import RankOneNormal
from sere_jax.flows.whitening import WHITENING_RIDGE, Whitening
from sere_jax.layer import Layer
from sere_jax.partition import create_partition, previous_blocks

FLOW = {"data_layer": "masked_autoregressive_flow", "flow_hidden_size": 12}
PLAIN = FLOW | {"num_layers": 1, "latent_shape": (0,), "couple_data": False, "num_flows": 3}
HALF_WIDTH, RESOLUTION = 14.0, 281


@pytest.fixture(params=[False, True], ids=["", "direct"], scope="module")
def direct(request):
    """Whether there are direct connections."""
    return request.param


def random_values(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def grid_of_two_pixels(resolution=RESOLUTION):
    """Points [num, 1, 2, 1] of a grid, and the area that each stands for."""
    axis = np.linspace(-HALF_WIDTH, HALF_WIDTH, resolution, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    return points.reshape(-1, 1, 2, 1), (axis[1] - axis[0]) ** 2


# ------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (0, 1, 3)], ids=["all", "padded"])
def test_the_rank_one_normal_is_that_of_scipy(kept):
    mean, direction, x = random_values(3, 4)
    variance = np.float32([0.3, 1.0, 2.0, 0.7])
    mask = np.isin(np.arange(4), kept).astype(np.float32)
    normal = RankOneNormal(mean, variance, direction, None if len(kept) == 4 else mask)

    kept = list(kept)
    covariance = (np.diag(variance) + np.outer(direction, direction))[np.ix_(kept, kept)]
    expected = stats.multivariate_normal(mean[kept], covariance)
    np.testing.assert_allclose(normal.log_prob(x), expected.logpdf(x[kept]), rtol=1e-5)

    noise = random_values(200_000, 5)
    samples = np.asarray(normal.sample(noise[:, :4], noise[:, 4]))
    np.testing.assert_allclose(samples[:, kept].mean(axis=0), mean[kept], atol=0.02)
    np.testing.assert_allclose(np.cov(samples[:, kept].T), covariance, atol=0.05)
    assert (samples[:, mask == 0] == 0).all()


def test_activations_are_normalized_by_the_data_that_init_sees():
    x = np.float32([1.0, -2.0, 0.5]) + np.float32([0.1, 3.0, 0.0]) * random_values(1000, 3)
    norm = ActivationNorm((3,))
    variables = norm.init(jax.random.key(0), x)

    u = np.asarray(norm.apply(variables, None).inverse(x))

    np.testing.assert_allclose(u.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(u.std(axis=0), [1.0, 1.0, 0.0], atol=1e-3)  # a constant is kept
    log_det = norm.apply(variables, None).inverse_log_det_jacobian(x[:1])
    np.testing.assert_allclose(log_det, -np.log(x[:, :2].std(axis=0)).sum(), rtol=1e-4)


def test_every_flow_of_several_starts_from_normalized_activations(random_module, direct):
    flows = MaskedAutoregressiveFlows((4,), (16,), num_flows=3, direct=direct)
    x = 5.0 + 2.0 * random_values(500, 4)
    params = flows.init(jax.random.key(0), x=x)["params"]
    steps = flows.apply({"params": params}).bijectors
    if direct:
        whitening, *steps = steps
        x = whitening.inverse(x)

    for step in steps:
        norm, flow = step.bijectors
        u = np.asarray(norm.inverse(x))
        np.testing.assert_allclose(u.mean(axis=0), 0.0, atol=1e-3)
        np.testing.assert_allclose(u.std(axis=0), 1.0, atol=1e-3)
        x = flow.inverse(u)
    first, second, third = (step.bijectors[1].network.degrees.inputs for step in steps)
    assert first == third == second[::-1] == (1, 2, 3, 4)


def correlated(num, size):
    """Rows [num, size] whose columns depend on each other, and then a constant."""
    values = random_values(num, size) @ random_values(size, size, seed=3) + 2.0
    return np.concatenate([values, np.full((num, 1), 0.7, np.float32)], axis=1)


@pytest.mark.parametrize("num_conditions", [0, 3])
def test_the_whitening_predicts_what_least_squares_of_numpy_predict(num_conditions):
    data = correlated(400, num_conditions + 5)
    condition = data[:, :num_conditions] if num_conditions else None
    x = data[:, num_conditions:]
    whitening = Whitening(x.shape[1])
    params = whitening.init(jax.random.key(0), condition, x)
    bijector = whitening.apply(params, condition, None)
    u = np.asarray(bijector.inverse(x))

    deviation = np.append(data.std(axis=0)[:-1], 1.0)
    for d in range(x.shape[1] - 1):
        seen = (data[:, : num_conditions + d] - data.mean(axis=0)[: num_conditions + d]) / (
            deviation[: num_conditions + d]
        )
        # Ridge regression as least squares with further rows.
        rows = np.concatenate([seen, WHITENING_RIDGE**0.5 * np.eye(num_conditions + d)])
        targets = np.append(x[:, d] - x[:, d].mean(), np.zeros(num_conditions + d))
        weights, *_ = np.linalg.lstsq(rows, targets)
        residual = x[:, d] - x[:, d].mean() - seen @ weights
        log_scale = params["params"]["log_scale"][d]
        np.testing.assert_allclose(u[:, d] * np.exp(log_scale), residual, atol=2e-3)
        loss = np.square(residual).sum() + WHITENING_RIDGE * np.square(weights).sum()
        loss += WHITENING_RIDGE * x[:, d].var()
        np.testing.assert_allclose(np.exp(log_scale), (loss / len(x)) ** 0.5, rtol=1e-3)
    np.testing.assert_allclose(u[:, -1], 0.0, atol=1e-4)  # the constant keeps its scale
    assert params["params"]["log_scale"][-1] == 0


@pytest.mark.parametrize("num_conditions", [0, 3])
def test_the_whitening_agrees_with_its_jacobian_and_keeps_padding(random_module, num_conditions):
    whitening, mask = Whitening(5), np.float32([1, 1, 1, 1, 0])
    condition = random_values(4, num_conditions, seed=2) if num_conditions else None
    params = random_module(whitening, condition, None, mask)
    u = random_values(4, 5) * mask

    def forward(u, row=slice(None)):
        own = None if condition is None else condition[row]
        return whitening.apply(params, own, None, mask).forward_and_log_det(u)

    x, log_det = forward(u)
    bijector = whitening.apply(params, condition, None, mask)
    back, inverse_log_det = bijector.inverse_and_log_det(x)
    for row in range(4):
        jacobian = np.asarray(jax.jacobian(lambda u, row=row: forward(u, row)[0])(u[row]))
        assert (jacobian[np.triu_indices(5, 1)] == 0).all()
        np.testing.assert_allclose(log_det[row], np.linalg.slogdet(jacobian).logabsdet, rtol=1e-4)
    np.testing.assert_allclose(back, u, atol=1e-3)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-5)
    assert (x[:, 4] == 0).all() and (np.asarray(x[:, :4]) != 0).all()


def test_the_whitening_is_not_trained(random_module):
    flows, x = MaskedAutoregressiveFlows((4,), (16,), num_flows=1, direct=True), random_values(3, 4)
    params = random_module(flows)["params"]

    def log_det(params):
        return jnp.sum(flows.apply({"params": params}).inverse_and_log_det(x)[1])

    gradients = jax.jit(jax.grad(log_det))(params)
    assert not any(gradient.any() for gradient in jax.tree.leaves(gradients.pop("whitening")))
    direct = [g for name, g in gradients["flow_0"]["network"].items() if name.startswith("direct")]
    assert direct and all(np.any(gradient != 0) for gradient in direct)


@pytest.mark.parametrize(("padded", "gated"), [(False, False), (True, False), (False, True)])
def test_conditional_flows_agree_with_the_jacobian_and_keep_padding(
    random_module, padded, gated, direct
):
    if gated and direct:
        pytest.skip("no model has both: direct connections are for data, gates for codes")
    flows = MaskedAutoregressiveFlows((5,), (12, 10), num_flows=2, direct=direct, gated=gated)
    first, second = random_values(3, 2), random_values(2, 3, 4)
    mask = np.float32([1, 1, 1, 0, 0]) if padded else None
    params = random_module(flows, first, second, mask=mask, observed=second)
    u = random_values(2, 3, 5, seed=2) * (1.0 if mask is None else mask)

    @jax.jit
    def compute(params, u):
        flow = flows.apply(params, first, second, mask=mask, observed=second)
        x, log_det = flow.forward_and_log_det(u)
        jacobian = jax.jacobian(lambda u: flow.forward(u).reshape(-1, 5))(u)
        return x, log_det, jacobian, *flow.inverse_and_log_det(x)

    x, log_det, jacobian, back, inverse_log_det = compute(params, u)

    own = np.moveaxis(np.diagonal(jacobian.reshape(6, 5, 6, 5), axis1=0, axis2=2), -1, 0)
    expected = np.linalg.slogdet(own.astype(np.float64)).logabsdet.reshape(2, 3)
    np.testing.assert_allclose(log_det, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-3, atol=1e-3)
    # Random direct connections make some scales so small that float32 loses a digit more.
    np.testing.assert_allclose(back, u, atol=5e-3 if direct else 1e-3)
    if padded:
        assert (x[..., 3:] == 0).all() and np.abs(x[..., :3]).min() > 0


def test_gates_refuse_padding_which_they_would_change():
    flows = MaskedAutoregressiveFlows((5,), (12,), num_flows=1, gated=True)
    with pytest.raises(ValueError, match="flows with gates change padding; give them no mask"):
        flows.init(jax.random.key(0), random_values(3, 2), mask=np.float32([1, 1, 1, 0, 0]))


# ------------------------------------------------------------------------------- plain flows


def moderate_model(config):
    """Parameters without a single zero whose densities have no peaks too narrow for the grid."""
    model = sere_jax.create_model(config)
    params = sere_jax.init(model, jax.random.key(0))
    generator = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda leaf: leaf + 0.1 * generator.standard_normal(leaf.shape).astype(np.float32), params
    )


@pytest.fixture(scope="module")
def plain(tiny_config, direct):
    fields = PLAIN | {"flow_direct_connections": direct}
    return moderate_model(tiny_config(data_shape=(1, 2, 1), **fields))


def test_a_plain_flow_integrates_to_one_and_samples_follow_it(plain):
    model, params = plain
    points, area = grid_of_two_pixels()
    log_density = np.asarray(sere_jax.log_likelihood(model, params, points, jax.random.key(0)))
    mass = np.exp(log_density.astype(np.float64)).reshape(RESOLUTION, RESOLUTION) * area
    np.testing.assert_allclose(mass.sum(), 1.0, atol=2e-3)

    num_samples = 20_000
    samples = np.asarray(sere_jax.sample(model, params, jax.random.key(1), num_samples))
    # Cells of 5 x 5 points, whose middles they are counted by.
    cell = RESOLUTION // 5
    edges = np.linspace(-1, 1, RESOLUTION) * HALF_WIDTH
    step = edges[1] - edges[0]
    borders = np.append(edges[: 5 * cell : 5], edges[5 * cell - 1] + step) - step / 2
    counts, _, _ = np.histogram2d(*samples.reshape(-1, 2).T, bins=[borders, borders])
    mass = mass[: 5 * cell, : 5 * cell].reshape(cell, 5, cell, 5).sum(axis=(1, 3))
    expected = num_samples * mass / mass.sum()
    kept = expected > 5
    assert kept.sum() > 30
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert stats.chi2.sf(chi_square, kept.sum() - 1) > 1e-3


def test_the_likelihood_of_a_plain_flow_is_exact_whatever_the_samples_and_the_key(plain):
    model, params = plain
    x = random_values(5, 1, 2, 1)
    exact = sere_jax.log_likelihood(model, params, x, jax.random.key(0))

    for num_samples in (1, 7):
        again = sere_jax.log_likelihood(model, params, x, jax.random.key(9), num_samples)
        np.testing.assert_array_equal(again, exact)
    out = sere_jax.infer(model, params, x, jax.random.key(1))
    np.testing.assert_allclose(out.elbo, exact, rtol=1e-6)
    assert out.kl.shape == (5, 1) and (out.kl == 0).all()
    np.testing.assert_allclose(
        sere_jax.objective(model, params, x, jax.random.key(2)).value, exact, rtol=1e-6
    )


def test_a_plain_flow_has_no_parameters_but_those_of_its_flows(plain):
    _, params = plain
    assert list(params["hierarchy"]["layers"]) == ["data_layer"]
    assert list(params["hierarchy"]["layers"]["data_layer"]) == ["flow"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_shape": (0,)}, "leaves the data layer 'bernoulli' without anything"),
        (
            FLOW | {"latent_shape": (0,), "couple_data_to_prior": True},
            "needs a prior with parameters",
        ),
        (FLOW | {"latent_shape": (2, 0)}, "integers of at least 1"),
        (FLOW | {"num_flows": 0}, "num_flows=0"),
        ({"flow_direct_connections": True}, "means nothing to data_layer='bernoulli'"),
        (FLOW | {"flow_direct_connections": 1}, "flow_direct_connections=1 must be True or False"),
        ({"prior": "standard"}, "'standard' must be one of gaussian, standard_normal, spline"),
    ],
)
def test_impossible_flows_are_refused(tiny_config, fields, message):
    with pytest.raises(sere_jax.ConfigError, match=message.replace("(", r"\(")):
        tiny_config(**fields)


# -------------------------------------------------------------------------- flows as data layers


def density_given_everything(config, params, x, z):
    """Σ_l log p(x_l | z_l, x_{l-1}) by the Jacobian of the sampler and scipy's normal density."""
    partition = create_partition(config)
    blocks = partition.split(x)
    previous = previous_blocks(blocks, config.data_context)
    total = 0.0
    for index in range(config.num_layers):
        own = {"params": jax.tree.map(operator.itemgetter(index), params["hierarchy"]["layers"])}
        mask = partition.mask[index]
        kept = np.flatnonzero(np.broadcast_to(mask, partition.block_shape))

        def bijector_and_base(layer, z, previous, mask=mask):
            parameters = layer.decode(z, layer.data_layer.observe(previous))
            mask = layer.data_layer._flatten_mask(mask)
            base = layer.data_layer._base(parameters, mask)
            return layer.data_layer._bijector(parameters, mask, None), base

        compute = functools.partial(Layer(config).apply, own, method=bijector_and_base)
        bijector, base = compute(z[index], previous[index])
        u = bijector.inverse(blocks[index].reshape(-1))
        jacobian = np.asarray(jax.jit(jax.jacobian(bijector.forward))(u), np.float64)
        jacobian = jacobian[np.ix_(kept, kept)]
        covariance = np.diag(base.variance) + np.outer(base.direction, base.direction)
        normal = stats.multivariate_normal(base.mean[kept], covariance[np.ix_(kept, kept)])
        total += normal.logpdf(np.asarray(u)[kept]) - np.linalg.slogdet(jacobian).logabsdet
    return total


def test_the_density_of_conditional_flows_is_that_of_their_sampler_padding_left_out(
    random_model, direct
):
    # 5 pixels in blocks of 2, so that the last one has a place to spare.
    fields = FLOW | {"flow_direct_connections": direct}
    model, params = random_model(data_shape=(1, 5, 1), data_context=2, **fields)
    x, noise = random_values(1, 1, 5, 1), random_values(3, 1, 2, seed=2)

    out = jax.jit(model.apply)({"params": params}, x, noise)

    expected = density_given_everything(model.config, params, x[0], out.z[0])
    np.testing.assert_allclose(out.log_likelihood[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("data_context", [1, 2])
def test_conditional_flows_read_all_codes_and_blocks_and_nothing_else(
    tiny_config, random_module, data_context, direct
):
    config = tiny_config(data_context=data_context, **(FLOW | {"flow_direct_connections": direct}))
    layer = create_data_layer(config, (1, 2, 1))
    z, previous = random_values(2), random_values(data_context, 1, 2, 1)
    block = random_values(1, 2, 1, seed=2)

    def log_prob(layer, z, previous, offset=True):
        parameters = layer(z, layer.observe(previous)) if offset else layer(z)
        return layer.block_log_prob(parameters, block, None)

    params = random_module(layer, z, previous, method=log_prob)
    apply = functools.partial(layer.apply, params, method=log_prob)
    by_code, by_blocks = jax.jit(jax.grad(apply, argnums=(0, 1)))(z, previous)
    assert (np.abs(by_code) > 1e-4).all() and (np.abs(by_blocks) > 1e-4).all()

    without = functools.partial(apply, offset=False)
    by_code, by_blocks = jax.jit(jax.grad(without, argnums=(0, 1)))(z, previous)
    assert (np.abs(by_code) > 1e-4).all() and (by_blocks == 0).all()


@pytest.mark.parametrize("condition_size", [0, 3])
def test_without_residual_a_flow_is_one_whose_weights_of_the_previous_blocks_are_zero(
    random_model, direct, condition_size
):
    options = {"condition_size": condition_size, "flow_direct_connections": direct}
    model, params = random_model(**FLOW, data_context=2, **options)
    x, key = random_values(5, 2, 3, 1), jax.random.key(0)
    given = {"condition": random_values(5, 3)} if condition_size else {}

    def without_previous(path, leaf):
        names = [str(entry.key) for entry in path]
        is_of_previous = {"condition_1", "head_condition_1", "condition_kernel"} & set(names)
        return 0.0 * leaf if is_of_previous or {"residual", "head"} <= set(names) else leaf

    reduced = jax.tree_util.tree_map_with_path(without_previous, params)
    z = sere_jax.infer(model, params, x, key, **given).z
    # The codes are those of the images in both.
    np.testing.assert_array_equal(z, sere_jax.infer(model, reduced, x, key, **given).z)
    found = sere_jax.reconstruct(model, params, x, key, residual=False, **given)
    expected = sere_jax.reconstruct(model, reduced, x, key, **given)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with_previous = sere_jax.reconstruct(model, params, x, key, **given)
    assert not np.allclose(found, with_previous, atol=1e-2)


def test_without_codes_nothing_is_reconstructed_or_interpolated(random_model):
    model, params = random_model(**PLAIN)
    x, key = random_values(2, 2, 3, 1), jax.random.key(0)
    with pytest.raises(ValueError, match="reconstruct needs codes"):
        sere_jax.reconstruct(model, params, x, key)
    with pytest.raises(ValueError, match="interpolate needs codes"):
        sere_jax.interpolate(model, params, x[0], x[1], key, 3)


@pytest.mark.slow
def test_a_model_of_conditional_flows_integrates_to_one(tiny_config, direct):
    """With codes from the prior, importance weighting has no bias in p(x), only noise."""
    model, params = moderate_model(
        tiny_config(
            data_shape=(1, 2, 1),
            num_layers=2,
            bijector="spline_coupling",
            **(FLOW | {"flow_direct_connections": direct}),
        )
    )
    network = params["hierarchy"]["layers"]["posterior"]["network"]
    bias = jnp.zeros_like(network["head"]["bias"]).at[..., 2:].set(50.0)  # δμ = 0, δσ = 1
    head = {"kernel": jnp.zeros_like(network["head"]["kernel"]), "bias": bias}
    layers = params["hierarchy"]["layers"] | {"posterior": {"network": network | {"head": head}}}
    points, area = grid_of_two_pixels(101)

    estimate = functools.partial(sere_jax.log_likelihood, model, {"hierarchy": {"layers": layers}})
    masses = [
        np.exp(np.float64(estimate(points, jax.random.key(seed), 100))).sum() * area
        for seed in range(4)
    ]

    # The samples of different points are independent, so that little noise is left in the sum.
    np.testing.assert_allclose(masses, 1.0, atol=0.02)


@pytest.mark.slow
def test_init_reads_a_batch_of_data_for_the_normalization_of_flows_alone(tiny_config):
    x = 3.0 + random_values(50, 2, 3, 1)
    model = sere_jax.create_model(tiny_config(**FLOW))
    one, other = (sere_jax.init(model, jax.random.key(0), images) for images in (None, x))
    same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, atol=1e-5)), one, other)
    flows = same["hierarchy"]["layers"]["data_layer"].pop("flow")
    for name, parameters in flows.items():
        assert not any(parameters.values()) if "norm" in name else all(jax.tree.leaves(parameters))
    assert all(jax.tree.leaves(same))
    with pytest.raises(ValueError, match=r"x has the shape \(1, 2\)"):
        sere_jax.init(model, jax.random.key(0), np.zeros((1, 2)))


# -------------------------------------------------------------------------------- logit space


def test_logit_space_and_back_with_the_jacobian():
    pixels = np.linspace(0.0, 1.0, 101, dtype=np.float32)
    x = sere_jax.logit_transform(pixels)

    np.testing.assert_allclose(x, stats.logistic.ppf(0.05 + 0.9 * pixels), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sere_jax.inverse_logit_transform(x), pixels, atol=1e-6)
    derivative = jax.vmap(jax.grad(sere_jax.logit_transform))(pixels)
    np.testing.assert_allclose(sere_jax.logit_log_det(x), np.log(derivative), rtol=1e-4, atol=1e-5)
