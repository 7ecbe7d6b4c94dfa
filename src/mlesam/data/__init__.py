"""Datasets on disk, and how their frames become batches."""

from mlesam.data.dataset import Dataset, Frame, open_dataset, register

__all__ = ["Dataset", "Frame", "open_dataset", "register"]
