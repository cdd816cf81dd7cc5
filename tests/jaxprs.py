"""What a traced program is made of."""

import jax
from jax.extend import core


def sub_jaxprs(equation):
    for value in jax.tree.leaves(
        list(equation.params.values()),
        is_leaf=lambda value: isinstance(value, core.Jaxpr | core.ClosedJaxpr),
    ):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def equations(jaxpr, repeats=1):
    """All equations with the number of times that they run, those of loops included."""
    for equation in jaxpr.eqns:
        yield equation, repeats
        for inner in sub_jaxprs(equation):
            yield from equations(inner, repeats * equation.params.get("length", 1))
