from __future__ import annotations

import math

import pytest
import torch

from lookaround.tasks.vision.evaluation import Scores, evaluate

# Six classes, four images; image i has logit 1 for the classes listed, by rank.
LOGITS = torch.tensor(
    [
        [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # label 0: first
        [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # label 4: fifth
        [9.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # label 5: sixth
        [0.0, 0.0, 0.0, 7.0, 0.0, 0.0],  # label 3: first
    ]
)
LABELS = torch.tensor([0, 4, 5, 3])


def looked_up(images: torch.Tensor) -> torch.Tensor:
    return LOGITS[images.flatten().long()]


def scores(batch_size: int) -> Scores:
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    return evaluate(looked_up, images, LABELS, prepare=lambda batch: batch, batch_size=batch_size)


def test_scores_by_hand():
    partition = math.log(sum(math.exp(logit) for logit in (9, 5, 4, 3, 2, 1)))
    nll = (3 * partition - 9 - 2 - 1 + math.log(5 + math.exp(7)) - 7) / 4
    assert scores(4).top1 == 50
    assert scores(4).top5 == 75
    assert scores(4).nll == pytest.approx(nll, rel=1e-6)
    # All four confidences are above 14/15 and share a bin; two of the predictions are right.
    alike, fourth = math.exp(9 - partition), math.exp(7) / (5 + math.exp(7))
    assert scores(4).ece == pytest.approx(100 * abs(3 * alike + fourth - 2) / 4, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_short_last_batch_counts_by_its_images(batch_size):
    assert scores(batch_size).top1 == scores(4).top1
    assert scores(batch_size).top5 == scores(4).top5
    assert scores(batch_size).ece == pytest.approx(scores(4).ece, rel=1e-6)
    assert scores(batch_size).nll == pytest.approx(scores(4).nll, rel=1e-6)


def test_five_classes_have_no_top_5():
    images = torch.zeros(2, 1, 1, 1, dtype=torch.uint8)
    found = evaluate(
        lambda batch: torch.eye(5)[:2], images, torch.tensor([0, 0]), prepare=lambda batch: batch, batch_size=2
    )
    assert found.top1 == 50
    assert found.top5 is None
