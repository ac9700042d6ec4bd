"""Built-in data sets, image folders and torchvision data sets."""

from .dataset import ImageTensors
from .load import Data, load_data

__all__ = ["Data", "ImageTensors", "load_data"]
