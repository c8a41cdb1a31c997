"""The translation task against torch.nn.Transformer in a plain loop: from the same weights, the same numbers."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lookaround.experiment import Plan
from lookaround.experiment.display import Lines
from lookaround.experiment.running import prepare
from lookaround.experiment.training import Training
from lookaround.tasks.base import Batch, Minibatch
from lookaround.tasks.text.layers import sinusoids
from lookaround.tasks.translation.network import Sentences, Translator, TranslatorSize
from reference.plain_translation import PlainTranslator, positions, smoothed_loss, take, trained

WORDS, SIZE = 280, TranslatorSize(width=16, layers=2, heads=4, hidden=32, dropout=0.0)


def plain(words: int = WORDS, size: TranslatorSize = SIZE) -> PlainTranslator:
    return PlainTranslator(words, size.width, size.layers, size.heads, size.hidden, size.dropout)


def run(folder: Path, root: Path) -> Training:
    """Three epochs with a warm-up, a cosine, smoothed labels and clipping that bites, in float64."""
    options = {"task": "translation", "root": str(root), "source": "en", "target": "de", "vocabulary": WORDS}
    size = {"width": SIZE.width, "layers": SIZE.layers, "heads": SIZE.heads, "hidden": SIZE.hidden, "dropout": 0.0}
    method = "adamw:batch=60,lr=0.01,schedule=cosine,warmup=0.5"
    plan = Plan.from_options(
        {**options, **size, "branches": 1, "epochs": 3, "clip": 0.5, "methods": [method], "device": "cpu"}
    )
    training = Training(prepare(plan), plan.methods[0], 0, folder, Lines(lambda line: None))
    training.model.double()
    training.display.begin(1)
    training.display.run("", 0, training.total)
    return training


def plain_loop(training: Training) -> list[float]:
    """The losses of the same minibatches in the plain loop, from the same weights."""
    network = plain(len(training.task.bitext.subwords)).double()
    take(network, training.model)
    copies: list[Batch] = [training.batches.copy(position, 0) for position in range(training.total)]
    warmup = round(0.5 * training.total / 3)
    later = [0.5 * (1 + math.cos(math.pi * t / (training.total - warmup))) for t in range(training.total - warmup)]
    factors = [*[(t + 1) / warmup for t in range(warmup)], *later]
    losses = trained(
        network,
        [(copy.inputs.source, copy.inputs.target, copy.targets) for copy in copies],
        [0.01 * factor for factor in factors],
        adamw={"betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 1e-2},
        share=0.1,
        clip=0.5,
    )
    return list(losses)


def test_a_run_of_lookaround_train_follows_the_plain_loop_step_by_step(folder: Path, tmp_path: Path) -> None:
    training = run(tmp_path, folder)
    assert training.total > 20
    expected = plain_loop(training)
    found = []
    for position in range(training.total):
        before = training.tally[0].item()
        training._train([Minibatch(training.batches, position)])
        found.append(training.tally[0].item() - before)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # the task takes its loss in float32
    assert expected[-1] < 0.6 * expected[0]


def test_logits_loss_and_every_gradient_are_those_of_torchs_transformer() -> None:
    torch.manual_seed(0)
    own, theirs = Translator(WORDS, SIZE).double(), plain().double()
    for norm in (module for module in own.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.uniform_(norm.weight, 0.5, 2)  # ones would hide a norm in another's place
    take(theirs, own)
    source, target = torch.randint(3, WORDS, (3, 5)), torch.randint(3, WORDS, (3, 6))
    source[1, 3:], target[2, 4:] = 0, 0
    wanted = torch.randint(3, WORDS, (3, 6))
    wanted[2, 4:] = -100
    logits, expected = own(Sentences(source, target)), theirs(source, target)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    smoothed_loss(logits, wanted, 0.1).backward()
    smoothed_loss(expected, wanted, 0.1).backward()
    gradients = plain().double()
    for parameter in own.parameters():
        parameter.data = parameter.grad
    take(gradients, own)
    for (name, found), parameter in zip(gradients.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found.data, parameter.grad, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("seed", range(3))
def test_initial_weights_are_drawn_from_the_same_distributions(seed: int) -> None:
    """Each tensor: the same bounds of a uniform distribution (to what 16 · 16 draws show of them), constants the same."""
    torch.manual_seed(seed)
    size = TranslatorSize(width=64, layers=1, heads=4, hidden=256, dropout=0.1)
    own, theirs, drawn = Translator(1000, size), plain(1000, size), plain(1000, size)
    take(theirs, own)
    for (name, mine), other in zip(theirs.state_dict().items(), drawn.state_dict().values(), strict=True):
        if other.min() == other.max():
            assert torch.equal(mine, other), name
            continue
        for part, like in zip(mine.split(64), other.split(64), strict=True):  # query, key and value one by one
            assert part.std() == pytest.approx(like.std().item(), rel=0.3 if mine.dim() == 1 else 0.06), name
            assert part.abs().max() == pytest.approx(
                like.abs().max().item(), rel=0.5 if "embedding" in name else 0.05
            ), name


def test_positions_are_the_papers() -> None:
    torch.testing.assert_close(sinusoids(50, 10), positions(50, 10), rtol=1e-12, atol=1e-12)
