"""Keys of what a run draws: each purpose has its own, so that no two of them draw the same."""

import zlib

import jax

from sere_jax.arrays import as_key

Array = jax.Array


def key_for(purpose: str, seed: int = 0) -> Array:
    """The key of a purpose, such as "init" or "train", in runs of this seed.

    That of "test" is `jax.random.key(seed)` itself, as it always was: figures of all versions are
    of the same binarized images.
    """
    key = as_key(jax.random.key(seed))
    return key if purpose == "test" else jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def purpose_of(split: str) -> str:
    """To evaluate images of a split; "train" is the purpose of the training itself."""
    return "training images" if split == "train" else split
