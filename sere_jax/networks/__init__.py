"""Families of neural networks."""
