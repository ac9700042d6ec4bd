"""Data sets: built in, from folders, from torchvision."""

from .load import Data, load_data
from .loading import ImageTensors

__all__ = ["Data", "ImageTensors", "load_data"]
