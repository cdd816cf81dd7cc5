"""Trained models, for research code that builds on them.

from experiments import trained

model, params = trained.load("runs/digits")
data = trained.load_data("runs/digits")
"""

from experiments.training.trained_model import load, load_data

__all__ = ["load", "load_data"]
