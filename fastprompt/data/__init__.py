"""Data sets: built in, from folders, from torchvision."""

from .dataset import ImageTensors
from .load import Data, load_data

__all__ = ["Data", "ImageTensors", "load_data"]
