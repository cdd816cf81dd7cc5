"""Experiments with sere_jax: flags, data, training, evaluation, checkpoints and reports."""

import importlib.util
import sys

if importlib.util.find_spec("ml_collections") is None:
    sys.exit("error: experiments needs more packages: pip install -e '.[experiments]'")
