"""The SeRe-VAE as it was without a scan: every layer is a part of the program of its own."""

from flax import linen as nn

from sere_jax.hierarchy import Hierarchy
from sere_jax.sere_vae import SeReVAE


class UnrolledHierarchy(Hierarchy):
    """`Hierarchy` with a program that grows with the number of layers."""

    def _one_after_another(self, method, in_axes=0, *, reverse=False):
        return nn.scan(
            self._rematerialized(method),
            length=self.config.num_layers,
            in_axes=in_axes,
            reverse=reverse,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            unroll=self.config.num_layers,
        )


class UnrolledSeReVAE(SeReVAE):
    """`SeReVAE` with the same parameters, and the same results."""

    def setup(self):
        """Creates the hierarchy."""
        self.hierarchy = UnrolledHierarchy(self.config, name="hierarchy")
