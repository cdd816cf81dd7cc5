"""Flows: bijectors, and the data layer built of them."""
