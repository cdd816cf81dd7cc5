"""Drawing the missing pixels of images given the others, by a Markov chain with p as its limit."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.arrays import (
    Array,
    Count,
    Images,
    Keys,
    Params,
    Values,
    as_key,
    as_parameters,
    public,
)
from sere_jax.compilation import jit
from sere_jax.inputs import (
    OF_ACCEPTANCE,
    block_keys,
    check_completable,
    check_condition,
    check_images,
    check_observed,
    checked_count,
    example_keys,
    sample_noise,
    with_zeros,
)
from sere_jax.model import LatentVariableModel, apply
from sere_jax.partition import create_partition
from sere_jax.redraw import Redraw

NUM_STEPS = 200


@public
def complete(
    model: LatentVariableModel,
    params: Params,
    x: Values,
    observed: Values,
    key: Keys,
    num_steps: Count = NUM_STEPS,
    *,
    condition: Values | None = None,
) -> Images:
    """Draws the missing pixels of images given the observed ones, which stay as they are.

    Let o be the observed pixels and m the missing ones. The chain moves (z, m) and leaves

        (1)  p(z, m | o), proportional to p(z, x) = Π_l p(z_l | z_<l, x_<l) p(x_l | z_l, x_<l),

    as it is, so that m has p(m | o) in the limit of many steps (x_<l: the previous blocks that the
    priors and data layers see). A step has two kinds of Metropolis-Hastings moves:

        (2)  z' ~ q(z | x), for the current completion x, is accepted with probability
                 min(1, w(z') / w(z)),    w(z) = p(z, x) / q(z | x).
             It is proposed whatever z is, so that both proposals have the density q(. | x).
        (3)  m'_l ~ p(m_l | z_l, x_<l), for blocks l = 1 .. L in turn, is accepted with probability
                 min(1, p(z, x') p(m_l | z_l, x_<l) / (p(z, x) p(m'_l | z_l, x_<l))).
             x' differs from x in block l alone, so that both proposals have the same z_l and x_<l.
             What is left of the ratio are the terms of later layers, which see block l:
                 Π_{k>l} p(z_k | z_<k, x'_<k) p(x_k | z_k, x'_<k) / (same with x).

    Where no layer sees other blocks, (3) accepts all, and all blocks move at once. Without the
    corrections this is the chain of Rezende et al. 2014 (appendix F); (2) is the correction of
    Mattei and Frellsen 2018 (Metropolis-within-Gibbs). Densities may be those of ε instead of z:
    f_l does not depend on x, so that its Jacobian cancels in (2) and (3).

    The chain starts from a sample of the model with the observed pixels put into it. It forgets
    this start the faster, the nearer q is to the posterior.

    Args:
        x: [B, *data_shape] in data space. Its values at missing pixels do not matter; they may be
            NaN.
        observed: [*data_shape] bool, the same for all images, True at pixels that are known; all
            channels of a pixel or none.
        key: PRNG key, or [B] keys, one chain each.
        num_steps: how many steps; results are those after the last one.
        condition: [B, C].

    Returns:
        [B, *data_shape] in data space.

    Raises:
        TypeError: `observed` is not bool, or x or `num_steps` have the wrong type.
        ValueError: shapes are wrong; `num_steps` is below 1; nothing or everything is observed; or
            the model's pixels are not independent given its codes, as those of flows.
    """
    check_completable(model)
    known = check_observed(model, observed)
    x = check_images(model, with_zeros(x, known))
    condition = check_condition(model, condition, len(x))
    num_steps = checked_count("num_steps", num_steps)
    keys = example_keys(as_key(key), len(x))
    return _complete(model, as_parameters(params), x, known, keys, num_steps, condition)


class State(NamedTuple):
    """Of B chains."""

    x: Array  # the current completions
    coordinates: Any  # of the codes, see `LatentVariableModel.coordinates`


@jit(static_argnums=(0,))
def _complete(
    model: LatentVariableModel,
    params: Params,
    x: Array,
    observed: Array,
    keys: Array,
    num_steps: Array | int,
    condition: Array | None,
) -> Array:
    call = functools.partial(apply, model, params, condition=condition)
    noise = sample_noise(model, keys, 0)
    start = call(noise, block_keys(model, keys), method="generate")[0]
    x = jnp.where(observed, x, start.astype(x.dtype))
    state = State(x, call(x, noise, method="coordinates"))
    state = advance(model, params, state, observed, keys, num_steps, condition)
    return state.x.astype(start.dtype)


def advance(
    model: LatentVariableModel,
    params: Params,
    state: State,
    observed: Array,
    keys: Array,
    num_steps: Array | int,
    condition: Array | None,
) -> State:
    """The state after so many steps of `complete`."""
    call = functools.partial(apply, model, params, condition=condition)

    def step(number: Array, state: State) -> State:
        step_keys = _folded(keys, number + 1)
        state = _move_codes(model, call, state, step_keys)
        return _move_pixels(model, call, state, step_keys, ~observed)

    return jax.lax.fori_loop(0, num_steps, step, state)


def _move_codes(
    model: LatentVariableModel, call: Callable[..., Any], state: State, keys: Array
) -> State:
    """(2) of `complete`."""
    x, codes = state
    proposed = call(x, sample_noise(model, keys, 0), method="coordinates")
    log_ratio = call(x, proposed, method="log_weight") - call(x, codes, method="log_weight")
    return State(x, _chosen(_is_accepted(keys, log_ratio), proposed, codes))


def _move_pixels(
    model: LatentVariableModel,
    call: Callable[..., Any],
    state: State,
    keys: Array,
    missing: Array,
) -> State:
    """(3) of `complete`."""
    group_of_pixel, num_groups = _groups(model)

    def redraw(x: Array, number: Array | int) -> tuple[Array, Array, Redraw]:
        drawn_keys = block_keys(model, _folded(keys, number + 1))
        arguments = (x, state.coordinates, missing.astype(jnp.float32), drawn_keys)
        drawn, log_prior, log_prob = call(*arguments, method="redraw")
        return drawn, log_prior + jnp.sum(log_prob.whole, axis=0), log_prob

    def move(carry: tuple[Array, Any], group: Array) -> tuple[tuple[Array, Any], None]:
        x, (drawn, log_joint, log_prob) = carry
        moves = missing & (jnp.asarray(group_of_pixel)[..., None] == group)
        proposed = jnp.where(moves, drawn, x)
        of_proposed = redraw(proposed, group + 1)
        difference = log_prob.old - log_prob.new  # of the proposals
        difference = jnp.sum(difference, 0) if num_groups == 1 else difference[group]
        log_ratio = of_proposed[1] - log_joint + difference
        is_accepted = _is_accepted(_folded(keys, group + 1), log_ratio)
        x = _chosen(is_accepted, proposed, x)
        return (x, _chosen_of_blocks(is_accepted, of_proposed, carry[1])), None

    start = (state.x, redraw(state.x, 0))
    (x, _), _ = jax.lax.scan(move, start, jnp.arange(num_groups))
    return State(x, state.coordinates)


def _groups(model: LatentVariableModel) -> tuple[np.ndarray, int]:
    """The group of each pixel [height, width], and their number; a group moves at once."""
    config = model.config
    if model.generates_blocks and (config.couple_data or config.couple_data_to_prior):
        return create_partition(config).layer_of_pixel, config.num_layers
    return np.zeros(config.data_shape[:2], int), 1


def _is_accepted(keys: Array, log_ratio: Array) -> Array:
    """[B] bool, for keys [B]; never where the ratio is not a number."""
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, OF_ACCEPTANCE)))
    return jnp.log(uniform(keys)) < log_ratio


def _chosen(is_first: Array, first: Any, second: Any) -> Any:
    """Of trees with leaves [B, ...], the first where `is_first` [B]."""

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(jnp.expand_dims(is_first, tuple(range(1, one.ndim))), one, other)

    return jax.tree.map(choose, first, second)


def _chosen_of_blocks(is_first: Array, first: Any, second: Any) -> Any:
    """The same of what `redraw` returns, whose log-probabilities of blocks are [blocks, B]."""
    (*first_leaves, of_first), (*second_leaves, of_second) = first, second
    leaves = _chosen(is_first, first_leaves, second_leaves)
    return (*leaves, jax.tree.map(functools.partial(jnp.where, is_first), of_first, of_second))


def _folded(keys: Array, number: Array | int) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
