"""How good predictions are, over a whole set of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lookaround.tasks.base import Predict
from lookaround.tasks.vision.data import Images

_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Means over all images.

    Attributes:
        top1: percentage whose label has the largest logit.
        top5: percentage whose label is among the five largest logits; None for five classes or fewer.
        nll: negative log-likelihood of the labels, in nats.
        ece: expected calibration error in percent: by how much the confidence differs from the accuracy, the mean over 15 equal
            bins of confidence weighted by their images (Guo et al. 2017).
    """

    top1: float
    top5: float | None
    nll: float
    ece: float


@torch.inference_mode()
def evaluate(
    predict: Predict, images: Images, labels: Tensor, *, prepare: Callable[[Tensor], Tensor], batch_size: int
) -> Scores:
    """Scores of ``predict``, every image counted once whatever the batch size.

    Args:
        predict: logits ``(N, classes)`` from prepared images.
        images: uint8 ``(M, C, H, W)``, in memory or on the disk.
        labels: int64 ``(M,)``, on the same device.
        prepare: normalizes a batch.
        batch_size: images in a batch.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=labels.device)
    bins = torch.zeros(2, _BINS, dtype=torch.float64, device=labels.device)
    classes = 0
    for batch, target in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = predict(prepare(batch)).float()
        classes = logits.shape[1]
        hits = _hits(logits, target)
        sums += torch.stack([*(hit.sum() for hit in hits), F.cross_entropy(logits, target, reduction="sum").double()])
        _fill(bins, logits, hits[0])
    top1, top5, nll = (sums / len(labels)).tolist()
    ece = (bins[0] - bins[1]).abs().sum().item() / len(labels)
    return Scores(100 * top1, 100 * top5 if classes > 5 else None, nll, 100 * ece)


def _hits(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    ranked = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
    return ranked[:, 0].double(), ranked.sum(1).double()


def _fill(bins: Tensor, logits: Tensor, hit: Tensor) -> None:
    """Adds every prediction's confidence, and whether it was right, to its bin; one that is no number counts as no confidence."""
    confidence = logits.double().softmax(1).amax(1).nan_to_num()
    which = (confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)
    bins[0].index_add_(0, which, confidence)
    bins[1].index_add_(0, which, hit)
