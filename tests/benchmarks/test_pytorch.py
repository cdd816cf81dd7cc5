"""The models in PyTorch are ours: the same values from the same parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from benchmarks import production
from configs import cifar_checkerboard, mnist_mlp
from sere_jax.config import model_config

torch = pytest.importorskip("torch")
pytorch = pytest.importorskip("benchmarks.pytorch")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]


def parameter_counts(model, torch_model):
    shapes = jax.eval_shape(functools.partial(sere_jax.init, model), jax.random.key(0))
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return ours, sum(parameter.numel() for parameter in torch_model.parameters())


def randomized(params):
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return structure.unflatten(
        [0.5 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    )


def assign(parameter, value):
    assert parameter.shape == value.shape
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(value)))


def assign_dense(linear, params, layer):
    assign(linear.weight, params["kernel"][layer].T)
    if "bias" in params:
        assign(linear.bias, params["bias"][layer])
    else:
        assert linear.bias is None


def assign_network(network, params, layer):
    for linear, name in ((network.codes, "Dense_0"), (network.hidden, "Dense_1")):
        assign_dense(linear, params[name], layer)
    assign_dense(network.head, params["head"], layer)


def assign_features(features, params, layer):
    linears = [module for module in features if isinstance(module, torch.nn.Linear)]
    for index, linear in enumerate(linears):
        assign_dense(linear, params[f"Dense_{index}"], layer)


def test_the_mlp_model_has_as_many_parameters():
    config = mnist_mlp.get_config()
    torch_model = pytorch.SeReVAE(model_config(config))
    ours, theirs = parameter_counts(sere_jax.create_model(config), torch_model)
    assert ours == theirs


def test_the_mlp_model_has_our_likelihood_and_kl():
    model = sere_jax.create_model(production.reduced_mlp(mnist_mlp.get_config(), quick=True))
    x = (np.random.default_rng(2).random((3, 4, 4, 1)) > 0.5).astype(np.float32)
    params = randomized(sere_jax.init(model, jax.random.key(0)))
    noise = np.random.default_rng(1).standard_normal((3, *model.noise_shape)).astype(np.float32)
    ours = model.apply({"params": params}, jnp.asarray(x), jnp.asarray(noise).swapaxes(0, 1))

    torch_model = pytorch.SeReVAE(model.config)
    params = params["hierarchy"]["layers"]
    for index, layer in enumerate(torch_model.layers):
        assign_features(layer.encoder, params["encoder"], index)
        assign_features(layer.observed, params["data_layer"]["observed"], index)
        for network, part in (
            (layer.prior, params["prior"]["network"]),
            (layer.posterior, params["posterior"]["network"]),
            (layer.bijector, params["bijector"]["network"]),
            (layer.data, params["data_layer"]["base"]),
            (layer.data_residual, params["data_layer"]["residual"]),
        ):
            assign_network(network, part, index)
        assign(layer.direction_start, params["bijector"]["direction_start"][index])
    with torch.no_grad():
        inputs = (torch.from_numpy(x.reshape(3, -1)), torch.from_numpy(noise))
        log_likelihood, kl = torch_model(*inputs)

    np.testing.assert_allclose(log_likelihood, ours.log_likelihood, rtol=1e-4)
    np.testing.assert_allclose(kl, ours.kl.sum(axis=1), rtol=1e-4)


def test_updates_with_bfloat16_are_near_those_with_float32():
    config = production.reduced_mlp(mnist_mlp.get_config(), quick=True)
    images = np.full((16, *config.model.data_shape), 255, np.uint8)  # binarized, all ones
    changes = []
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        model = pytorch.SeReVAE(model_config(config))
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        pytorch.train_step(
            model, images, config.training, updates=2, compiled=False, bfloat16=bfloat16
        )()
        changes.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before)
    exact, rounded = changes
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.9


def test_the_encoders_have_our_features():
    config = production.reduced_resnet(cifar_checkerboard.get_config("case1"), quick=True)
    model = sere_jax.create_model(config)
    images = production.random_images(config, 2)
    params = randomized(sere_jax.init(model, jax.random.key(0)))
    ours = model.apply({"params": params}, jnp.asarray(images), method="observe").posterior

    torch_model = pytorch.ResNetEncoders(model.config)
    params = params["hierarchy"]["layers"]["encoder"]
    for index, (first, *blocks) in enumerate(torch_model.encoders):
        # PyTorch has the channels of a position before its pixels, we have them after.
        kernel = params["Conv_0"]["kernel"][index].reshape(3, 3, torch_model.factor**2, 3, -1)
        kernel = kernel.swapaxes(2, 3).reshape(3, 3, -1, kernel.shape[-1])
        assign(first.weight, kernel.transpose(3, 2, 0, 1))
        assign(first.bias, params["Conv_0"]["bias"][index])
        for number, block in enumerate(blocks):
            part = params[f"ResidualBlock_{number}"]
            assign(block.first.weight, part["Conv_0"]["kernel"][index].transpose(3, 2, 0, 1))
            assign(block.first.bias, part["Conv_0"]["bias"][index])
            assign(block.second.weight, part["Dense_0"]["kernel"][index].T[..., None, None])
            assign(block.second.bias, part["Dense_0"]["bias"][index])
    x = torch.from_numpy(images.astype(np.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = torch_model(x).permute(0, 1, 3, 4, 2)

    np.testing.assert_allclose(features, ours, rtol=1e-3, atol=1e-3)


def test_updates_move_all_parameters_of_layers_that_have_one_before():
    config = production.reduced_mlp(mnist_mlp.get_config(), quick=True)
    model = pytorch.SeReVAE(model_config(config))
    _, *layers = model.layers
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    images = production.random_images(config, 16)
    pytorch.train_step(model, images, config.training, updates=2, compiled=False)()
    for old, new in zip(before, parameters, strict=True):
        assert not torch.equal(old, new)
