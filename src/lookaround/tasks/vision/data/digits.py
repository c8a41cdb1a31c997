"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the wheel."""

from __future__ import annotations

import torch

from lookaround.tasks.vision.data.dataset import ImageData, class_order

TEST_IMAGES = 360
SPLIT_SEED = 0


def load_digits() -> ImageData:
    """The 1,797 digits of the UCI optical recognition test set, split for good into 1,437 to train and 360 to test.

    One channel, 8x8. Values 0 to 16 are scaled to 0 to 255 and rounded. The split is stratified: each digit gives a
    fifth of its images (±1) to the test part.

    Example:
        >>> from lookaround.tasks.vision.data.digits import load_digits
        >>> data = load_digits()
        >>> tuple(data.train_images.shape), tuple(data.test_images.shape)
        ((1437, 1, 8, 8), (360, 1, 8, 8))
    """
    from sklearn.datasets import load_digits as read

    bunch = read()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    order = class_order(labels, SPLIT_SEED, proportional=True)
    test, train = order[:TEST_IMAGES].sort().values, order[TEST_IMAGES:].sort().values
    names = [str(digit) for digit in range(10)]
    return ImageData.from_images("digits", images[train], labels[train], images[test], labels[test], names)
