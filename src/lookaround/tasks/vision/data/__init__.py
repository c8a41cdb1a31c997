"""Images to train on, and the augmentations that make branches differ."""

from lookaround.tasks.vision.data.augmentation import AUGMENTATIONS, Augmentation, augmentation, default_augmentations
from lookaround.tasks.vision.data.dataset import ImageData
from lookaround.tasks.vision.data.errors import DataError
from lookaround.tasks.vision.data.geometry import random_crop
from lookaround.tasks.vision.data.images import Images
from lookaround.tasks.vision.data.loading import DATA_SETS, load_data

__all__ = [
    "AUGMENTATIONS",
    "DATA_SETS",
    "Augmentation",
    "DataError",
    "ImageData",
    "Images",
    "augmentation",
    "default_augmentations",
    "load_data",
    "random_crop",
]
