"""What one sees in the pictures and charts of a run, said in a sentence or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting.text import bits, is_number, nats, plain

LEAST_KL = 0.1  # nats of a layer whose codes say something of the image
# In the order of the page; the first two stand side by side above all else.
PICTURES = {
    "samples.png": "Samples: expected pixels, drawn once and not selected.",
    "real_images.png": "Images that were not trained on, to compare them with.",
    "reconstructions.png": "Images, and below each what the model makes of its codes.",
    "completions.png": "Images, their upper halves, and below each three ways to go on that "
    "the model draws.",
    "interpolation.png": "Each row goes from one image to another through the codes.",
    "traversals.png": "Each row changes one latent of an image, over the range that it has "
    "among other images, and keeps all others; shown are those that change it most.",
    "build_up.png": "Samples as they come into being, layer by layer; gray is still to come.",
    "residual_layers.png": "Images, their reconstructions, and these without the data "
    "layers' residual δγ: what it adds is the difference of the two lower rows.",
}
# Files of charts, which the page draws itself.
CHARTS = ("learning_curves.png", "kl_per_layer.png")


def of_kl(kl_per_layer: Sequence[Any]) -> str:
    """Which layers carry how much information, in nats."""
    kl = {layer: value for layer, value in enumerate(kl_per_layer, 1) if is_number(value)}
    if not kl:
        return "No layer has a KL that is a number."
    most, least = max(kl, key=lambda layer: kl[layer]), min(kl, key=lambda layer: kl[layer])
    if len(kl) == 1:
        return f"The codes carry {nats(kl[most])}."
    in_use = sum(value >= LEAST_KL for value in kl.values())
    number = f"all {in_use}" if in_use == len(kl) else f"{in_use} of {len(kl)}"
    return (
        f"Layer {most} carries {nats(kl[most])}, the most, and layer {least} {nats(kl[least])}. "
        f"All layers together carry {nats(sum(kl.values()))}; {number} carry at least "
        f"{LEAST_KL} nats."
    )


def of_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Where the ELBO ends, and where it was best."""
    train, validation = (
        [r for r in metrics if r.get("split") == split and is_number(r.get("elbo"))]
        for split in ("train", "validation")
    )
    parts = []
    if validation:
        best = max(validation, key=lambda record: record["elbo"])
        epoch = best.get("epoch")
        place = f" after {epoch:.4g} epochs" if is_number(epoch) else ""
        parts.append(
            f"The ELBO of validation images is best{place}: {nats(best['elbo'])}{_bits(best)}."
        )
    if train:
        parts.append(f"That of training images ends at {nats(train[-1]['elbo'])}.")
    return " ".join(parts) or "No ELBO has been logged."


def _bits(record: Mapping[str, Any]) -> str:
    value = record.get("bits_per_dim")
    return f", {bits(value)} bits/dim" if is_number(value) else ""


def subtitle(config: Mapping[str, Any] | None, results: Mapping[str, Any] | None) -> str:
    """Data set, system, layers and date, as far as they are known."""
    sections = ((config or {}).get(name) for name in ("dataset", "model"))
    dataset, model = (s if isinstance(s, Mapping) else {} for s in sections)
    computer = (results or {}).get("evaluation_computer")
    parts = [dataset.get("name"), model.get("system"), model.get("network")]
    layers, latent_shape = model.get("num_layers"), model.get("latent_shape")
    if isinstance(latent_shape, list):
        shape = "×".join(map(plain, latent_shape))
        parts.append(f"{layers} layer{'' if layers == 1 else 's'} of {shape} codes")
    if isinstance(computer, Mapping):
        parts.append(computer.get("date"))
    return " · ".join(plain(part) for part in parts if part)
