"""The loop of timm's train.py: its scaler with clipping, its scheduler, its checkpoint saver and its way to resume."""

import argparse

import pytest
import torch
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, NativeScaler
from torch import nn

from conformance.table import same
from frameworks.loops import loss_of, network
from lookaround import Lookahead, Lookaround

pytestmark = pytest.mark.filterwarnings("ignore")
WRAPS = {
    "lookahead": lambda inner, model: Lookahead(inner, k=5, alpha=0.5),
    "lookaround": lambda inner, model: Lookaround(inner, branches=3, k=2, model=model),
}
EPOCHS, UPDATES, CLIP = 4, 5, 0.5
every_wrap = pytest.mark.parametrize("name", WRAPS)
every_inner = pytest.mark.parametrize("inner", ["sgd", "adamw", "lamb", "adan", "kron"])


@pytest.fixture(autouse=True)
def not_compiled():
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def start(name, inner, seed=0):
    model = network(seed)
    settings = {"deterministic": True} if inner == "kron" else {}  # else it draws from torch's generator
    optimizer = WRAPS[name](create_optimizer_v2(model, opt=inner, lr=0.02, weight_decay=0.05, **settings), model)
    return model, optimizer, CosineLRScheduler(optimizer, t_initial=EPOCHS, warmup_t=1, warmup_lr_init=1e-3)


def train_as_timm(model, optimizer, scheduler, epochs, saver=None):
    scaler = NativeScaler(device="cpu")
    for epoch in epochs:
        for update in range(epoch * UPDATES, (epoch + 1) * UPDATES):
            scaler(loss_of(model, update), optimizer, clip_grad=CLIP, parameters=model.parameters())
            optimizer.zero_grad()
            scheduler.step_update(num_updates=update)
        scheduler.step(epoch + 1)
        if saver is not None:
            saver.save_checkpoint(epoch, metric=float(epoch))


def train_by_hand(model, optimizer, scheduler, epochs):
    """The same without their scaler: its scale is a power of two, which no rounding sees."""
    for epoch in epochs:
        for update in range(epoch * UPDATES, (epoch + 1) * UPDATES):
            loss_of(model, update).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = scheduler._get_lr(epoch + 1)[0]


@every_wrap
@every_inner
def test_its_loop_is_the_hand_written_one(name, inner):
    (model, optimizer, scheduler), (plain_model, plain, rates) = start(name, inner), start(name, inner)
    train_as_timm(model, optimizer, scheduler, range(EPOCHS))
    train_by_hand(plain_model, plain, rates, range(EPOCHS))
    assert same(model.state_dict(), plain_model.state_dict())
    assert same(optimizer.state_dict()["state"], plain.state_dict()["state"])


@every_wrap
@every_inner
def test_its_checkpoint_of_the_middle_of_a_round_resumes(name, inner, tmp_path):
    model, optimizer, scheduler = start(name, inner)
    saver = CheckpointSaver(model, optimizer, args=argparse.Namespace(model="tiny"), checkpoint_dir=str(tmp_path))
    train_as_timm(model, optimizer, scheduler, range(2), saver)
    (file,) = tmp_path.glob("last*")
    resumed_model, resumed, again = start(name, inner, seed=5)
    assert resume_checkpoint(resumed_model, str(file), resumed, log_info=False) == 2
    again.step(2)
    train_as_timm(model, optimizer, scheduler, range(2, EPOCHS))
    train_as_timm(resumed_model, resumed, again, range(2, EPOCHS))
    assert same(resumed_model.state_dict(), model.state_dict())
    assert same(resumed.state_dict()["state"], optimizer.state_dict()["state"])
