"""The learning rate, the weight of the KL and the optimizer."""

import functools
from typing import Any

import jax.numpy as jnp
import optax

from experiments.optimization.muon import scale_by_muon_or_adam
from experiments.optimization.parameter_groups import decayed
from experiments.settings.durations import duration_in_steps


def learning_rate_schedule(
    training: Any, *, steps_per_epoch: int, total_steps: int
) -> optax.Schedule:
    """Linear warm-up to the learning rate, then constant, linear or cosine decay."""
    warmup = duration_in_steps(
        "config.training.warmup",
        training.warmup,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    warmup = min(warmup, total_steps // 2)
    peak = training.learning_rate
    final = peak * training.final_learning_rate_factor
    decay_steps = max(total_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final, decay_steps),
        "cosine": optax.cosine_decay_schedule(
            peak, decay_steps, alpha=training.final_learning_rate_factor
        ),
    }[training.learning_rate_schedule]
    if warmup == 0:
        return after
    # Step 0 already moves: the warm-up starts at peak / warmup, not at 0.
    before = optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1)
    return optax.join_schedules([before, after], [warmup])


def followed_by(first: optax.Schedule, start: int, second: optax.Schedule) -> optax.Schedule:
    """`first` until step `start`, and from there `second` from its own step 0."""
    return lambda step: jnp.where(step < start, first(step), second(jnp.maximum(step - start, 0)))


def kl_weight_schedule(training: Any, *, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """The weight of the KL: from `kl_weight_start` to 1, linearly over `kl_warmup`."""
    steps = duration_in_steps(
        "config.training.kl_warmup",
        training.kl_warmup,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    start = training.kl_weight_start

    def schedule(step):
        progress = jnp.minimum(step / steps, 1.0) if steps else 1.0
        return start + (1.0 - start) * progress

    return schedule


def create_optimizer(training: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer named in the configuration, for gradients that are clipped already.

    Updates are clipped as in Adafactor (Shazeer & Stern 2018, section 6): where gradients suddenly
    grow, Adam's are several times as long as usual until its second moment has followed.

    Weight decay is decoupled from the gradient (AdamW): what it acts on changes by minus learning
    rate times decay times itself, besides.
    """
    scale = {
        "adam": optax.scale_by_adam,
        "adamax": optax.scale_by_adamax,
        "muon": scale_by_muon_or_adam,
    }[training.optimizer]
    parts = [scale()]
    if training.max_update_rms:
        parts.append(optax.clip_by_block_rms(training.max_update_rms))
    if training.weight_decay:
        mask = functools.partial(decayed, training.weight_decay_on)
        parts.append(optax.add_decayed_weights(training.weight_decay, mask))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))
