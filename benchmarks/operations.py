"""What a training step costs: parameters, operations, state, what devices exchange.

    python -m benchmarks.operations

prints the rows of docs/scaling.md, but for what is measured. Nothing is compiled.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval

import sere_jax
from benchmarks import production
from configs import cifar_checkerboard, cifar_maf, mnist_mlp, mnist_resnet
from experiments.optimization import schedules
from experiments.training.state import count_parameters, state_template

EXPERIMENTS = {
    "mnist_mlp": mnist_mlp.get_config,
    "mnist_resnet": mnist_resnet.get_config,
    "mnist_resnet:paper": lambda: mnist_resnet.get_config("paper"),
    "cifar_checkerboard": cifar_checkerboard.get_config,
    "cifar_maf:maf10": lambda: production.reduced_flow(cifar_maf.get_config("maf10"), quick=False),
}


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of the products of matrices and convolutions in a function.

    A multiplication and an addition for each pair of numbers, without the zeros that convolutions
    add at the border. Loops count as often as they run.
    Elementwise operations are left out: a few percent where layers have hundreds of units.

    Args:
        function: of arrays.
        *arguments: the arrays, or their shapes.

    Raises:
        ValueError: there are products in a loop whose length is not known before it runs.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # as XLA does
    return _of_jaxpr(used)


def of_training(config: Any, batch_size: int) -> int:
    """Of the gradient of the objective; the optimizer's, some 20 a parameter, are left out."""
    model = sere_jax.create_model(config)

    def objective(params, x):
        num_samples = config.training.num_train_samples
        bound = sere_jax.objective(model, params, x, jax.random.key(0), num_samples=num_samples)
        return jnp.mean(bound.value)

    return count(jax.grad(objective), _parameters(model), _images(model, batch_size))


def rows() -> str:
    """A line for each of `EXPERIMENTS`, in Markdown."""
    return "\n".join(_row(name, create()) for name, create in EXPERIMENTS.items())


def of_likelihood(model: sere_jax.LatentVariableModel, num_images: int, num_samples: int) -> int:
    """Of `sere_jax.log_likelihood`."""
    estimate = functools.partial(sere_jax.log_likelihood, model, num_samples=num_samples)
    return count(estimate, _parameters(model), _images(model, num_images), jax.random.key(0))


def _row(name, config):
    model, batch = sere_jax.create_model(config), config.training.batch_size
    optimizer = schedules.create_optimizer(config.training, lambda step: 0.0)
    state = state_template(model, optimizer, config.seed)
    parameters = count_parameters(state.params)
    megabytes = 1e-6 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    gradients = 1e-6 * sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    return (
        f"| `{name}` | {batch} | {parameters / 1e6:.2f} | {of_training(config, batch) / 1e9:.4g} "
        f"| {megabytes:.0f} | {gradients:.0f} |"
    )


def _parameters(model):
    return jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))


def _images(model, num):
    return jax.ShapeDtypeStruct((num, *model.config.data_shape), jnp.float32)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    operands: list[Any] = [variable.aval for variable in equation.invars]
    results: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * results[0].size * math.prod(operands[0].shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return 2 * _pairs_of_convolution(operands[0], operands[1], results[0], params)
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
    if name == "while" and any(inner):
        raise ValueError("products in a loop of unknown length cannot be counted")
    if name == "cond":
        return max(inner)
    return sum(inner) * params.get("length", 1)


def _pairs_of_convolution(image: Any, kernel: Any, result: Any, params: dict[str, Any]) -> int:
    """How many numbers of an image and of a kernel are multiplied; zeros at the border are not."""
    of_image, of_kernel, of_result = params["dimension_numbers"]
    pairs = kernel.shape[of_kernel[1]]
    pairs *= math.prod(result.shape[axis] for axis in of_result[:2])
    for axis, stride in enumerate(params["window_strides"]):
        last = (image.shape[of_image[2 + axis]] - 1) * params["lhs_dilation"][axis]
        places = (
            start * stride + offset * params["rhs_dilation"][axis] - params["padding"][axis][0]
            for start in range(result.shape[of_result[2 + axis]])
            for offset in range(kernel.shape[of_kernel[2 + axis]])
        )
        pairs *= sum(0 <= p <= last and not p % params["lhs_dilation"][axis] for p in places)
    return pairs


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


if __name__ == "__main__":
    print(rows())
