"""The SeRe-VAE as it was without a scan: every layer is a part of the program of its own."""

from sere_jax.hierarchy import Hierarchy
from sere_jax.sere_vae import SeReVAE


class UnrolledSeReVAE(SeReVAE):
    """`SeReVAE` with the same parameters, and the same results."""

    def setup(self):
        """Creates the hierarchy, whose program grows with the number of layers."""
        self.hierarchy = Hierarchy(self.config, unroll=self.config.num_layers, name="hierarchy")
