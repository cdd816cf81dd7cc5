"""A scan whose gradient leaves little to one step after another.

The gradient of `jax.lax.scan` goes back step by step through everything, and sums the gradients of
each step's weights there. Once the carries are known, what each step computes of its own can be
computed for all steps at once; only the gradient's way from carry to carry has to be scanned.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

Step = Callable[[Any, Any], tuple[Any, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan(step: Step, start: Any, inputs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`, with the last carry and the stacked outputs; gradients in reverse mode only.

    Where a gradient is asked for, each step is computed twice: in the scan for its carry alone, and
    for all steps at once. All that the step differentiates must be an argument, its weights too.

    Args:
        step: (carry, inputs of the step) to (next carry, outputs); a pure function.
        start: the first carry.
        inputs: arrays whose first axis are the steps.
    """
    return jax.lax.scan(step, start, inputs)


def _forward(step: Step, start: Any, inputs: Any) -> tuple[tuple[Any, Any], Any]:
    def advance(carry: Any, inputs_of_step: Any) -> tuple[Any, Any]:
        return step(carry, inputs_of_step)[0], carry

    last, carries = jax.lax.scan(advance, start, inputs)
    # A pullback is a pytree: here one whose arrays have the steps as their first axis.
    (_, outputs), pullbacks = jax.vmap(functools.partial(jax.vjp, step))(carries, inputs)
    return (last, outputs), pullbacks


def _backward(step: Step, pullbacks: Any, cotangents: tuple[Any, Any]) -> tuple[Any, Any]:
    del step
    by_last, by_outputs = cotangents

    def go_back(by_next: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        pullback, by_output = inputs
        return pullback((by_next, by_output))[0], by_next

    by_start, by_next = jax.lax.scan(go_back, by_last, (pullbacks, by_outputs), reverse=True)
    pull_back = jax.vmap(lambda pullback, *cotangent: pullback(cotangent)[1])
    return by_start, pull_back(pullbacks, by_next, by_outputs)


scan.defvjp(_forward, _backward)
