"""Proposition 2 in one picture: with the exact factorization the ELBO reaches log p(x).

    python -m experiments.proposition_2 --figure=proposition_2.png

On a linear Gaussian model, whose log p(x) is known, the posterior alone is trained: the SeRe-VAE's,
and a mean-field one for the same generative model.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from matplotlib.axes import Axes

import sere_jax
from experiments.reporting import canvas
from experiments.system import console
from experiments.system.errors import told_in_one_line
from experiments.system.paths import path_to_write
from sere_jax.linear_gaussian import LinearGaussian

Array = jax.Array
INFERENCE_LAYERS = ("encoder", "posterior")
BATCH_SIZE = 256
LEARNING_RATE = 0.03
FINAL_FACTOR = 1e-3
NUM_STEPS = 3000
NUM_TEST_EXAMPLES = 1000
NUM_CODES = 400
COLORS = {"SeRe-VAE": canvas.BLUE, "mean field": canvas.ORANGE}


def example_model() -> LinearGaussian:
    """Four layers of one latent, whose codes are strongly dependent given x.

    The first and the third block say little of their own codes, the second and the fourth much of
    the sum of two.
    """
    return LinearGaussian(
        prior_shift=np.array([0.3, -0.2, 0.1, 0.4]),
        prior_slope=np.array([0.0, 0.5, -0.4, 0.6]),
        prior_scale=np.array([1.0, 0.8, 1.2, 0.9]),
        code_shift=np.array([0.1, -0.3, 0.2, 0.0]),
        code_slope=np.array([0.0, 0.6, 0.7, 0.5]),
        code_gain=np.array([1.0, 0.9, 0.7, 1.1]),
        data_shift=np.array([[0.2, -0.1], [0.0, 0.3], [-0.4, 0.1], [0.2, 0.2]]),
        data_slope=np.array([[0.2, -0.1], [1.0, 0.8], [0.1, 0.3], [-0.9, 1.1]]),
        block_slope=np.array([np.zeros((2, 2)), *[[[0.4, -0.2], [0.1, 0.3]]] * 3]),
        data_scale=0.5,
    )


def exact_samples(exact: LinearGaussian, key: Array, num: int) -> Array:
    """Draws x [num, L, D, 1] from the joint Gaussian itself."""
    mean, loadings, noise = exact.moments()
    root = np.linalg.cholesky(loadings @ loadings.T + noise)
    x = mean + jax.random.normal(key, (num, len(mean))) @ root.T
    return jnp.reshape(x, (num, *exact.data_shift.shape, 1))


def train_posterior(
    exact: LinearGaussian,
    model: sere_jax.LatentVariableModel,
    params: Any,
    key: Array,
    steps: tuple[int, ...] = (NUM_STEPS,),
) -> list[Any]:
    """Maximizes the ELBO over the encoders and the posterior layers; all else stays as it is.

    Examples are drawn from `exact`. `steps` are numbers of updates, increasing; the last one is the
    length of the training. Returns the parameters after each of them.
    """
    optimizer = optax.adam(optax.exponential_decay(LEARNING_RATE, steps[-1], FINAL_FACTOR))

    def with_inference(trained):
        layers = params["hierarchy"]["layers"]
        return {"hierarchy": {"layers": {**layers, **trained}}}

    def loss(trained, key):
        data_key, noise_key = jax.random.split(key)
        x = exact_samples(exact, data_key, BATCH_SIZE)
        return -jnp.mean(sere_jax.objective(model, with_inference(trained), x, noise_key).value)

    def update(step, state):
        trained, optimizer_state = state
        gradient = jax.grad(loss)(trained, jax.random.fold_in(key, step))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(trained, updates), optimizer_state

    @jax.jit
    def train(state, first, last):
        return jax.lax.fori_loop(first, last, update, state)

    trained = {name: params["hierarchy"]["layers"][name] for name in INFERENCE_LAYERS}
    state, results = (trained, optimizer.init(trained)), []
    for first, last in zip((0, *steps), steps, strict=False):
        state = train(state, first, last)
        results.append(with_inference(state[0]))
    return results


def trained_posterior(
    model: sere_jax.LatentVariableModel, params: Any, x: Array
) -> tuple[np.ndarray, np.ndarray]:
    """What q(e | x) is with linear networks: means [B, L] and one covariance [L, L].

    The noises e_l of both posteriors are affine in the noise that they are drawn with.
    """

    mean, root = (np.asarray(values, np.float64) for values in _noises(model, params, x))
    return mean, root @ root.T


@functools.partial(jax.jit, static_argnums=0)
def _noises(model, params, x):
    """The noises e without noise [B, L], and their derivatives with respect to it [L, L]."""

    def noises(noise, x):
        shape = (len(noise), len(x), 1)
        out = model.apply({"params": params}, x, jnp.broadcast_to(noise[:, None, None], shape))
        return ((out.epsilon - out.prior_mean) / out.prior_scale)[..., 0]

    start = jnp.zeros(model.config.num_layers)
    return noises(start, x), jax.jacobian(lambda noise: noises(noise, x[:1])[0])(start)


def posterior_gap(
    exact: LinearGaussian, model: sere_jax.LatentVariableModel, params: Any, x: Array
) -> np.ndarray:
    """log p(x) - ELBO = KL(q(e | x) || p(e | x)) in nats for each of x [B, *data_shape]."""
    mean, precision = exact.posterior(np.asarray(x)[..., 0])
    our_mean, our_covariance = trained_posterior(model, params, x)
    shift = our_mean - mean
    relative = precision @ our_covariance
    return 0.5 * (
        np.trace(relative)
        - len(precision)
        - np.linalg.slogdet(relative)[1]
        + np.sum(shift @ precision * shift, axis=-1)
    )


def train_both(
    exact: LinearGaussian, steps: tuple[int, ...]
) -> dict[str, tuple[sere_jax.LatentVariableModel, list[Any]]]:
    """Trains the two posteriors of one generative model.

    Returns, by the name of the posterior, the model and its parameters after each of `steps`.
    """
    posteriors = {
        "SeRe-VAE": (exact, True),
        "mean field": (exact.with_uncoupled_prior(), False),
    }
    trained = {}
    for name, (linear, couple_prior) in posteriors.items():
        model = sere_jax.create_model(linear.config(couple_prior=couple_prior))
        params = linear.parameters(model, jax.random.key(0))
        trained[name] = model, train_posterior(exact, model, params, jax.random.key(1), steps)
    return trained


def compare(
    exact: LinearGaussian,
    trained: dict[str, tuple[sere_jax.LatentVariableModel, list[Any]]],
    steps: tuple[int, ...],
    path: str | os.PathLike[str],
) -> dict[str, list[float]]:
    """Draws the figure of what `train_both` returns.

    Returns the mean gap in nats after each of `steps`, by the name of the posterior.
    """
    x = exact_samples(exact, jax.random.key(2), NUM_TEST_EXAMPLES)
    mean, precision = exact.posterior(np.asarray(x[0, ..., 0]))
    gaps, codes = {}, {}
    for name, (model, history) in trained.items():
        gaps[name] = [float(posterior_gap(exact, model, params, x).mean()) for params in history]
        copies = jnp.broadcast_to(x[0], (NUM_CODES, *x.shape[1:]))
        out: Any = sere_jax.infer(model, history[-1], copies, jax.random.key(3))
        codes[name] = ((out.epsilon - out.prior_mean) / out.prior_scale)[:, :2, 0]
    figure = canvas.new_chart(10.0, 4.3)
    left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.25])
    _draw_codes(left, mean[:2], np.linalg.inv(precision)[:2, :2], codes)
    _draw_gaps(right, steps, gaps, exact.mean_field_gap())
    canvas.save(figure, path)
    return gaps


def _draw_codes(
    axes: Axes, mean: np.ndarray, covariance: np.ndarray, codes: dict[str, Array]
) -> None:
    """The exact posterior of the first two noises e_l, and samples [num, 2] of the trained ones."""
    angles = np.linspace(0.0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for radius in (1.0, 2.0, 3.0):
        ellipse = mean[:, None] + radius * np.linalg.cholesky(covariance) @ circle
        label = "exact posterior, 1 to 3 σ" if radius == 1.0 else None
        axes.plot(*ellipse, color=canvas.TEXT, linewidth=1.0, label=label)
    for name, samples in codes.items():
        axes.plot(*np.asarray(samples).T, ".", color=COLORS[name], markersize=2.2, label=name)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title("posterior of two latents, for one x", fontsize=11)
    axes.set_xlabel("$e_1$")
    axes.set_ylabel("$e_2$")
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": canvas.TEXT}
    axes.legend(loc="upper right", markerscale=4, **style)
    canvas.style_axes(axes)


def _draw_gaps(
    axes: Axes, steps: tuple[int, ...], gaps: dict[str, list[float]], mean_field_gap: float
) -> None:
    """log p(x) - ELBO in nats after each of `steps`, and the least of a factorized posterior."""

    def write(text: str, value: float, offset: tuple[int, int], color: str, size: int) -> None:
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": offset, "ha": "right"}
        axes.annotate(text, (steps[-1], value), fontsize=size, color=color, **place)

    for name, values in gaps.items():
        axes.plot(steps, values, color=COLORS[name], linewidth=1.8)
        offset = (-14, 0) if values[-1] < mean_field_gap / 2 else (0, 8)
        write(f"{name}: {values[-1]:.2g} nats", values[-1], offset, COLORS[name], 10)
    axes.axhline(mean_field_gap, color=canvas.MUTED, linewidth=1.0, linestyle="--")
    text = f"least mean-field gap: {mean_field_gap:.2f} nats"
    write(text, mean_field_gap, (0, -13), canvas.MUTED, 9)
    axes.set(xscale="log", yscale="log", xlabel="updates of the posterior")
    axes.set_ylabel("log p(x) - ELBO (nats)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("gap of the bound, same generative model", fontsize=11)
    canvas.style_axes(axes)


def main(argv: list[str]) -> None:
    """Trains both posteriors, prints their gaps and draws the figure."""
    del argv
    logging.set_verbosity(logging.WARNING)
    with told_in_one_line():
        figure = path_to_write(_FIGURE.value, "--figure")
        jax.config.update("jax_enable_x64", False)  # whatever the environment says
        exact = example_model()
        steps = tuple(int(step) for step in np.unique(np.geomspace(1, NUM_STEPS, 40).astype(int)))
        gaps = compare(exact, train_both(exact, steps), steps, figure)
        for name, values in gaps.items():
            print(f"{name}: log p(x) - ELBO = {values[-1]:.5f} nats")
        print(f"the least gap of a mean-field posterior: {exact.mean_field_gap():.5f} nats")


_FIGURE = flags.DEFINE_string("figure", "proposition_2.png", "PNG file to write.")

if __name__ == "__main__":
    console.make_robust()
    app.run(main)
