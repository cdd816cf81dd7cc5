"""Self-Reflective Variational Autoencoders in JAX (arXiv 2007.05166).

model = sere_jax.create_model(config)
params = sere_jax.init(model, jax.random.key(0))
sere_jax.log_likelihood(model, params, x, jax.random.key(1), num_samples=1000)
"""

from sere_jax import compilation
from sere_jax.config import ConfigError, ModelConfig
from sere_jax.data_space import inverse_logit_transform, logit_log_det, logit_transform
from sere_jax.functions import (
    create_model,
    elbo,
    infer,
    init,
    log_likelihood,
    reconstruct,
    sample,
    to_data_space,
    to_pixels,
)
from sere_jax.interpolation import interpolate
from sere_jax.model import Inferred, LatentVariableModel
from sere_jax.objectives import Objective, objective
from sere_jax.pretrained import load_pretrained, save_pretrained
from sere_jax.sere_vae import Inference, SeReVAE

__version__ = "0.2.0"

compilation.set_flag()

__all__ = [
    "ConfigError",
    "Inference",
    "Inferred",
    "LatentVariableModel",
    "ModelConfig",
    "Objective",
    "SeReVAE",
    "create_model",
    "elbo",
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
]
