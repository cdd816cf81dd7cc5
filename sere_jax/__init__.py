"""Self-Reflective Variational Autoencoders in JAX (arXiv 2007.05166).

model = sere_jax.create_model(config)
params = sere_jax.init(model, jax.random.key(0))
sere_jax.log_likelihood(model, params, x, jax.random.key(1), num_samples=1000)

Importing it does not import JAX, which takes a second: the first name that needs it does.
"""

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from sere_jax import xla_flag

if TYPE_CHECKING:
    from sere_jax.codes import decode, encode, traverse
    from sere_jax.completion import complete
    from sere_jax.config import ConfigError, ModelConfig
    from sere_jax.data_space import inverse_logit_transform, logit_log_det, logit_transform
    from sere_jax.functions import (
        create_model,
        elbo,
        infer,
        init,
        log_likelihood,
        to_data_space,
        to_pixels,
    )
    from sere_jax.generation import reconstruct, sample
    from sere_jax.interpolation import interpolate
    from sere_jax.model import Inferred, LatentVariableModel
    from sere_jax.objectives import Objective, objective
    from sere_jax.pretrained import load_pretrained, save_pretrained
    from sere_jax.sere_vae import Inference, SeReVAE

__version__ = "0.2.0"

xla_flag.set_flag()

__all__ = [
    "ConfigError",
    "Inference",
    "Inferred",
    "LatentVariableModel",
    "ModelConfig",
    "Objective",
    "SeReVAE",
    "complete",
    "create_model",
    "decode",
    "elbo",
    "encode",
    "infer",
    "init",
    "interpolate",
    "inverse_logit_transform",
    "load_pretrained",
    "log_likelihood",
    "logit_log_det",
    "logit_transform",
    "objective",
    "reconstruct",
    "sample",
    "save_pretrained",
    "to_data_space",
    "to_pixels",
    "traverse",
]

# Where they are, if not in `sere_jax.functions`.
_MODULES = {
    "ConfigError": "config",
    "Inference": "sere_vae",
    "Inferred": "model",
    "LatentVariableModel": "model",
    "ModelConfig": "config",
    "Objective": "objectives",
    "SeReVAE": "sere_vae",
    "complete": "completion",
    "decode": "codes",
    "encode": "codes",
    "interpolate": "interpolation",
    "inverse_logit_transform": "data_space",
    "load_pretrained": "pretrained",
    "logit_log_det": "data_space",
    "logit_transform": "data_space",
    "objective": "objectives",
    "reconstruct": "generation",
    "sample": "generation",
    "save_pretrained": "pretrained",
    "traverse": "codes",
}


def _get(name: str) -> Any:
    """What is asked for and is not here yet: a name of `__all__`, or a module."""
    if name in __all__:
        module = importlib.import_module(f"sere_jax.{_MODULES.get(name, 'functions')}")
        return getattr(module, name)
    if importlib.util.find_spec(f"sere_jax.{name}") is None:
        raise AttributeError(f"module 'sere_jax' has no attribute {name!r}")
    return importlib.import_module(f"sere_jax.{name}")


if not TYPE_CHECKING:  # for a type checker it would allow every name
    __getattr__ = _get

if "pdoc" in sys.modules:  # it documents what is here already
    globals().update({name: _get(name) for name in __all__})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
