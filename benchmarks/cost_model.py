"""What a training step costs, by arithmetic from a configuration, and how it should scale.

    python -m benchmarks.cost_model [--flops=GFLOP/s --bandwidth=GB/s]

prints the tables of docs/scaling.md. Nothing is compiled or measured. The options are the rates of
this machine, as `python -m benchmarks --only=machine` measures them, for the table of its own.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from configs import cifar_checkerboard, cifar_maf, mnist_mlp
from sere_jax.config import ModelConfig, model_config
from sere_jax.data_layer import create_data_layer
from sere_jax.networks.masked import cut_stripes, spread_degrees
from sere_jax.partition import create_partition

FLOAT = 4  # bytes
KERNEL = 3 * 3  # places of a convolution
STRIPE_SIZE = 128  # of masked kernels, the default of `sere_jax.networks.masked.MADE`

# Parameters are read forward and backward; gradients are written, read by the norm and by Adam,
# which reads and writes parameters, averages and two moments.
PARAMETER_PASSES = 2 + 3 + 8
# The result of a product is written, read by its nonlinearity, written again and read by the next
# product; backward both are read, and the cotangents of both written and read.
ACTIVATION_PASSES = 4 + 2 + 4
ACTIVATIONS_KEPT = 2  # from the forward pass to the backward one
KERNELS_PER_PRODUCT = 2  # the product, and what is fused of the rest


class Product(NamedTuple):
    """An affine map that each layer applies to each example.

    Attributes:
        inputs: values that an output is computed from; 0: the outputs are learned constants.
        outputs: how many.
        positions: of the map that it is applied at.
        has_bias: whether there is one.
        of_data: whether the inputs are data, which need no gradient.
        of_image: whether it is applied once an image, not to each sample of the codes.
        in_turn: whether it waits for the layer before, so that layers cannot be batched.
        connections: number of weights, if not all inputs and outputs are connected.
    """

    inputs: int
    outputs: int
    positions: int = 1
    has_bias: bool = True
    of_data: bool = False
    of_image: bool = False
    in_turn: bool = False
    connections: int | None = None

    @property
    def num_weights(self) -> int:
        """Without the bias."""
        return self.inputs * self.outputs if self.connections is None else self.connections

    @property
    def num_parameters(self) -> int:
        """With the bias."""
        return self.num_weights + self.outputs * self.has_bias

    @property
    def operations(self) -> int:
        """On one example: a multiplication and an addition for each weight and position."""
        return 2 * self.num_weights * self.positions

    @property
    def training_operations(self) -> int:
        """The same once more for the gradient by weights, and once more for that by inputs."""
        return self.operations * (2 if self.of_data else 3)


def layer_products(config: ModelConfig) -> list[Product]:
    """All affine maps of one layer of the SeRe-VAE, or of a plain flow.

    Raises:
        ValueError: the model has an option that is not counted here.
    """
    counted: dict[str, tuple[Any, ...]] = {
        "system": ("sere_vae",),
        "encoder": ("independent",),
        "latent_sizes": ((),),
        "network": ("mlp", "resnet"),
    }
    if config.has_flows:
        counted |= {"has_latents": (False,), "couple_data": (False,)}
    else:
        counted |= {"bijector": ("rank_one_affine",), "prior": ("gaussian",)}
    for name, values in counted.items():
        if getattr(config, name) not in values:
            raise ValueError(f"config.model.{name}={getattr(config, name)!r} is not counted here")
    if config.has_flows:
        return list(_flows(config))
    products = [*_code_products(config), *_data_products(config)]
    return [p._replace(in_turn=p.in_turn or config.applies_layers_in_turn) for p in products]


def num_parameters(config: ModelConfig) -> int:
    """Of all layers."""
    return config.num_layers * sum(product.num_parameters for product in layer_products(config))


def training_operations(config: ModelConfig, batch_size: int) -> int:
    """Floating-point operations of the gradient of the ELBO, one sample of the codes an image.

    Products of matrices and convolutions: forward a multiplication and an addition for each weight,
    position and example, and backward twice as many, or as many where the inputs are data. Left out
    are elementwise operations, a few percent of these where layers have hundreds of units; the
    optimizer, some 20 a parameter; and what rematerialized layers compute anew.
    """
    per_layer = sum(product.training_operations for product in layer_products(config))
    return batch_size * config.num_layers * per_layer


def evaluation_operations(config: ModelConfig, num_images: int, num_samples: int) -> int:
    """Floating-point operations of the importance-weighted likelihood, counted the same way.

    What depends on the image alone is applied once, the rest to each of `num_samples` codes.
    """
    per_layer = sum(
        product.operations * (1 if product.of_image else num_samples)
        for product in layer_products(config)
    )
    return num_images * config.num_layers * per_layer


class Cost(NamedTuple):
    """Of training steps of one model on one device.

    Attributes:
        parameters: how many.
        operations: floating-point operations an example.
        activations: results of all products, values an example.
        kernels: that a step starts one after another.
    """

    parameters: int
    operations: int
    activations: int
    kernels: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Cost":
        """Of a model."""
        products = [product for product in layer_products(config) if product.num_weights]
        values = sum(product.outputs * product.positions for product in products)
        in_sequence = sum(config.num_layers if product.in_turn else 1 for product in products)
        return cls(
            parameters=num_parameters(config),
            operations=training_operations(config, 1),
            activations=config.num_layers * values,
            kernels=3 * KERNELS_PER_PRODUCT * in_sequence,
        )

    def bytes_moved(self, batch_size: int) -> int:
        """Between memory and arithmetic, if nothing stays in caches from one kernel to the next."""
        of_batch = ACTIVATION_PASSES * self.activations * batch_size
        return FLOAT * (PARAMETER_PASSES * self.parameters + of_batch)

    def bytes_kept(self, batch_size: int) -> int:
        """Activations that the backward pass waits for, without rematerialization."""
        return FLOAT * ACTIVATIONS_KEPT * self.activations * batch_size

    @property
    def bytes_reduced(self) -> int:
        """Gradients that devices average."""
        return FLOAT * self.parameters


class Accelerator(NamedTuple):
    """Published rates of one device.

    Attributes:
        name: of the device.
        flops: operations a second of float32 products at JAX's default precision.
        bandwidth: of its memory, bytes a second.
        link: to the other devices of its node, bytes a second in each direction.
        network: its share of what leaves the node, in each direction.
        devices_per_node: how many share the links.
        kernel_seconds: from the start of a small kernel to that of the next; assumed.
        source: of the published rates.
    """

    name: str
    flops: float
    bandwidth: float
    link: float = math.inf
    network: float = math.inf
    devices_per_node: int = 1
    kernel_seconds: float = 0.0
    source: str = ""

    def all_reduce_seconds(self, num_bytes: int, num_devices: int) -> float:
        """A ring within the node and, at the rate of all its network cards, between nodes."""
        if num_devices == 1:
            return 0.0
        bandwidth = self.link
        if num_devices > self.devices_per_node:
            bandwidth = min(bandwidth, self.network * self.devices_per_node)
        hops = math.ceil(math.log2(num_devices)) * HOP_SECONDS
        return 2 * (num_devices - 1) / num_devices * num_bytes / bandwidth + 2 * hops


HOP_SECONDS = 5e-6  # of a message from device to device, assumed
ACCELERATORS = (
    Accelerator(
        name="A100 40GB SXM",
        flops=156e12,
        bandwidth=1.555e12,
        link=300e9,
        network=25e9,
        devices_per_node=8,
        kernel_seconds=5e-6,
        source="NVIDIA A100 datasheet: TF32 156 TFLOP/s dense, 1555 GB/s, NVLink 600 GB/s in both "
        "directions; DGX A100 datasheet: eight ports of 200 Gb/s for eight GPUs",
    ),
    Accelerator(
        name="H100 SXM",
        flops=494.5e12,
        bandwidth=3.35e12,
        link=450e9,
        network=50e9,
        devices_per_node=8,
        kernel_seconds=5e-6,
        source="NVIDIA H100 datasheet: TF32 989 TFLOP/s with sparsity, half of it dense, "
        "3.35 TB/s, NVLink 900 GB/s in both directions; DGX H100 datasheet: eight ports of "
        "400 Gb/s for eight GPUs",
    ),
    Accelerator(
        name="TPU v4",
        flops=275e12,
        bandwidth=1.2e12,
        link=300e9,
        devices_per_node=4096,
        kernel_seconds=2e-6,
        source="Cloud TPU documentation, v4: bf16 275 TFLOP/s, 1200 GB/s, pods of 4096; Jouppi et "
        "al. 2023 (arXiv 2304.01433), Table 4: six links of 50 GB/s",
    ),
    Accelerator(
        name="TPU v5e",
        flops=197e12,
        bandwidth=0.819e12,
        link=200e9,
        devices_per_node=256,
        kernel_seconds=2e-6,
        source="Cloud TPU documentation, v5e: bf16 197 TFLOP/s, 819 GB/s, 400 GB/s in both "
        "directions, pods of 256",
    ),
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a training step, of each thing that could limit it."""

    arithmetic: float
    memory: float
    kernels: float
    all_reduce: float

    @property
    def seconds(self) -> float:
        """The slowest on the device, and then the all-reduce, which waits for the last gradient."""
        return max(self._on_device().values()) + self.all_reduce

    @property
    def limit(self) -> str:
        """What takes longest."""
        parts = {**self._on_device(), "all-reduce": self.all_reduce}
        return max(parts, key=lambda name: parts[name])

    def _on_device(self):
        return {
            "arithmetic": self.arithmetic,
            "memory": self.memory,
            "kernel starts": self.kernels,
        }


def predict(
    cost: Cost, accelerator: Accelerator, batch_size: int, num_devices: int = 1
) -> Prediction:
    """Of a step with `batch_size` examples on each of `num_devices` devices."""
    return Prediction(
        arithmetic=cost.operations * batch_size / accelerator.flops,
        memory=cost.bytes_moved(batch_size) / accelerator.bandwidth,
        kernels=cost.kernels * accelerator.kernel_seconds,
        all_reduce=accelerator.all_reduce_seconds(cost.bytes_reduced, num_devices),
    )


def weak_efficiency(
    cost: Cost, accelerator: Accelerator, batch_size: int, num_devices: int
) -> float:
    """Examples a second and device over those of one device, the batch on each the same."""
    alone = predict(cost, accelerator, batch_size)
    return alone.seconds / predict(cost, accelerator, batch_size, num_devices).seconds


def strong_efficiency(
    cost: Cost, accelerator: Accelerator, batch_size: int, num_devices: int
) -> float:
    """The same where `batch_size` examples are split over the devices."""
    alone = predict(cost, accelerator, batch_size)
    split = predict(cost, accelerator, batch_size // num_devices, num_devices)
    return alone.seconds / (num_devices * split.seconds)


def sufficient_batch(
    cost: Cost, accelerator: Accelerator, num_devices: int, efficiency: float = 0.9
) -> int:
    """The least power of two of examples on each device with that weak efficiency."""
    return next(
        size
        for size in _powers_of_two()
        if weak_efficiency(cost, accelerator, size, num_devices) >= efficiency
    )


def filling_batch(cost: Cost, accelerator: Accelerator) -> int:
    """The least power of two of examples on a device that starts of kernels do not limit."""
    return next(
        size
        for size in _powers_of_two()
        if predict(cost, accelerator, size).limit != "kernel starts"
    )


def _maf10():
    """The configuration without direct connections, as the benchmarks time it."""
    config = cifar_maf.get_config("maf10")
    config.model.flow_direct_connections = False
    return config


EXPERIMENTS = {
    "mnist_mlp": mnist_mlp.get_config,
    "cifar_checkerboard": cifar_checkerboard.get_config,
    "cifar_maf:maf10": _maf10,
}


def costs() -> dict[str, tuple[Cost, int]]:
    """Cost and global batch size of each of `EXPERIMENTS`."""
    configs = {name: create() for name, create in EXPERIMENTS.items()}
    return {
        name: (Cost.of(model_config(config)), config.training.batch_size)
        for name, config in configs.items()
    }


def cost_table(experiments: Mapping[str, tuple[Cost, int]]) -> str:
    """A line for each experiment, in Markdown."""
    lines = [
        "| configuration | batch | parameters, millions | GFLOP | GB moved | MB kept for the "
        "backward pass | kernels in sequence | MB all-reduced |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {batch} | {cost.parameters / 1e6:.2f} | {cost.operations * batch / 1e9:.4g} "
        f"| {cost.bytes_moved(batch) / 1e9:.3g} | {cost.bytes_kept(batch) / 1e6:.3g} "
        f"| {cost.kernels} | {cost.bytes_reduced / 1e6:.3g} |"
        for name, (cost, batch) in experiments.items()
    ]
    return "\n".join(lines)


def scaling_table(cost: Cost, batch: int) -> str:
    """A line for each accelerator, in Markdown."""
    lines = [
        "| accelerator | 1: ms, limit | 8, batch split: ms, efficiency | 8, batch on each: ms, "
        "efficiency | 256, batch on each: ms, efficiency, limit | examples to fill one | examples "
        "on each of 256 for 90 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for accelerator in ACCELERATORS:
        alone = predict(cost, accelerator, batch)
        eight, many = (predict(cost, accelerator, batch, num) for num in (8, 256))
        on_eight, on_many = (weak_efficiency(cost, accelerator, batch, num) for num in (8, 256))
        split = f"{batch} is no multiple of 8"
        if batch % 8 == 0:
            milliseconds = 1e3 * predict(cost, accelerator, batch // 8, 8).seconds
            split = f"{milliseconds:.3g}, {strong_efficiency(cost, accelerator, batch, 8):.0%}"
        lines.append(
            f"| {accelerator.name} | {1e3 * alone.seconds:.3g}, {alone.limit} | {split} "
            f"| {1e3 * eight.seconds:.3g}, {on_eight:.0%} "
            f"| {1e3 * many.seconds:.3g}, {on_many:.0%}, {many.limit} "
            f"| {filling_batch(cost, accelerator)} | {sufficient_batch(cost, accelerator, 256)} |"
        )
    return "\n".join(lines)


def source_table() -> str:
    """Where the rates of `ACCELERATORS` are from, in Markdown."""
    lines = ["| accelerator | TFLOP/s | GB/s | source |", "|---|---|---|---|"]
    lines += [
        f"| {a.name} | {a.flops / 1e12:g} | {a.bandwidth / 1e9:g} | {a.source} |"
        for a in ACCELERATORS
    ]
    return "\n".join(lines)


def machine_table(experiments: Mapping[str, tuple[Cost, int]], machine: Accelerator) -> str:
    """Predictions for one device with measured rates, in Markdown.

    The cores of a CPU that compute also move the data, one after the other: the sum is predicted,
    not the larger part as for accelerators.
    """
    lines = ["| configuration | arithmetic, ms | memory, ms | sum |", "|---|---|---|---|"]
    for name, (cost, batch) in experiments.items():
        arithmetic = 1e3 * cost.operations * batch / machine.flops
        memory = 1e3 * cost.bytes_moved(batch) / machine.bandwidth
        lines.append(f"| `{name}` | {arithmetic:.4g} | {memory:.4g} | {arithmetic + memory:.4g} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__)
    parser.add_argument("--flops", type=float, help="GFLOP/s of this machine's float32 products")
    parser.add_argument("--bandwidth", type=float, help="GB/s of this machine's memory")
    arguments = parser.parse_args()
    if (arguments.flops is None) != (arguments.bandwidth is None):
        parser.error("--flops and --bandwidth go together")
    experiments = costs()
    tables = [source_table(), cost_table(experiments)]
    for name, (cost, batch) in experiments.items():
        tables.append(f"`{name}`, batch {batch}\n\n{scaling_table(cost, batch)}")
    if arguments.flops is not None:
        machine = Accelerator("this machine", 1e9 * arguments.flops, 1e9 * arguments.bandwidth)
        tables.append(f"This machine\n\n{machine_table(experiments, machine)}")
    print("\n\n".join(tables))


def _powers_of_two() -> Iterator[int]:
    return (2**power for power in itertools.count())


def _code_products(config: ModelConfig) -> Iterator[Product]:
    """Encoder, prior, posterior and bijector."""
    codes = math.prod(config.latent_shape)
    depth = config.num_hidden_layers
    yield from _features(config, math.prod(config.data_shape), depth)
    if config.couple_data_to_prior:
        yield from _features(config, _previous_values(config), depth - 1)
    networks = (
        (config.couple_prior, config.couple_data_to_prior, 2 * codes),
        (config.residual_sees_latents, True, 2 * codes),
        (config.couple_bijector, False, 3 * codes),
    )
    for sees_codes, has_offset, outputs in networks:
        window = config.context * codes if sees_codes else 0
        for product in _network(config, window, has_offset, outputs):
            yield product._replace(in_turn=True)
    yield Product(0, codes)  # where u starts
    if config.couple_bijector and config.carry_start:
        yield Product(0, config.latent_shape[-1])


def _data_products(config: ModelConfig) -> Iterator[Product]:
    """The data layer."""
    block_shape = create_partition(config).block_shape
    per_pixel = create_data_layer(config, block_shape).parameters_per_pixel
    outputs = math.prod(block_shape[:2]) * per_pixel
    codes = math.prod(config.latent_shape)
    yield from _network(config, codes, False, outputs)
    if config.couple_data:
        yield from _features(config, _previous_values(config), config.num_hidden_layers - 1)
        yield from _network(config, codes, True, outputs)


def _features(config: ModelConfig, values: int, depth: int) -> Iterator[Product]:
    """A features module of the family, of `values` values of an image."""
    size, positions = config.hidden_size, _positions(config)
    reads = KERNEL if config.network == "resnet" else 1
    yield Product(reads * values // positions, size, positions, of_data=True, of_image=True)
    for _ in range(depth):
        if config.network == "resnet":
            yield Product(KERNEL * size, size, positions, of_image=True)
        yield Product(size, size, positions, of_image=True)


def _network(config: ModelConfig, codes: int, has_offset: bool, outputs: int) -> Iterator[Product]:
    """A network of the family, from `codes` values (0: it does not see them)."""
    size, positions = config.hidden_size, _positions(config)
    is_resnet = config.network == "resnet"
    if not codes and not has_offset:
        yield Product(0, outputs)
        return
    if codes:
        yield Product((KERNEL if is_resnet else 1) * codes // positions, size, positions)
        for _ in range(0 if is_resnet else config.num_hidden_layers - 2):
            yield Product(size, size, positions)
        yield Product(size, size, positions, has_bias=not has_offset)
    for _ in range(config.num_hidden_layers - 1 if is_resnet else 0):
        yield Product(KERNEL * size, size, positions)
        yield Product(size, size, positions)
    yield Product(size, outputs // positions, positions)


def _flows(config: ModelConfig) -> Iterator[Product]:
    """Masked networks and activation normalizations; only what stripes hold is multiplied."""
    num_values = math.prod(create_partition(config).block_shape)
    widths = (config.flow_hidden_size,) * config.num_hidden_layers
    degrees = spread_degrees(num_values, widths, conditional=False)
    order = np.arange(1, num_values + 1)
    layers = [order, *map(np.asarray, degrees.hidden)]
    seen = [
        (np.searchsorted(before, after, side="right"), 1, True)
        for before, after in itertools.pairwise(layers)
    ]
    seen.append((np.searchsorted(layers[-1], order, side="left"), 2, True))  # mean and scale
    if config.flow_direct_connections:
        seen.append((order - 1, 2, False))
        yield Product(0, 2 * num_values)  # of the whitening
        yield Product(num_values, num_values, has_bias=False, in_turn=True)
    for _ in range(config.num_flows):
        yield Product(0, 2 * num_values)
        for num_seen, copies, has_bias in seen:
            stripes = cut_stripes(num_seen, STRIPE_SIZE)
            connections = sum(s.num_seen * (s.stop - s.start) for s in stripes)
            yield Product(
                int(num_seen.max()),
                copies * len(num_seen),
                connections=copies * connections,
                has_bias=has_bias,
                in_turn=True,
            )


def _previous_values(config: ModelConfig) -> int:
    """Values of the blocks that a data layer sees."""
    return config.data_context * math.prod(create_partition(config).block_shape)


def _positions(config: ModelConfig) -> int:
    """Of the maps that everything is computed on; 1: vectors.

    Raises:
        ValueError: a residual network on vectors, whose encoder alone is convolutional.
    """
    if config.network == "mlp":
        return 1
    if len(config.latent_shape) != 3:
        raise ValueError(f"network='resnet' with latent_shape={config.latent_shape} is not counted")
    return math.prod(config.latent_shape[:2])


if __name__ == "__main__":
    main()
