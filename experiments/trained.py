"""Trained models, for research code that builds on them.

from experiments import trained

model, params = trained.load("runs/digits")
"""

from experiments.training.trained_model import load

__all__ = ["load"]
