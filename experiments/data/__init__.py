"""Images: where they come from, and how they are shuffled and transformed."""

from experiments.data.dataset import Dataset, Labels, split_validation
from experiments.data.loading import DATASETS, load_dataset

__all__ = ["DATASETS", "Dataset", "Labels", "load_dataset", "split_validation"]
