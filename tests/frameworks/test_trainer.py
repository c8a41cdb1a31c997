"""Transformers' Trainer: trains as the loop by hand; evaluates and saves the average with no further code; resumes in mid-round."""

import pytest
import torch
from safetensors.torch import load_file
from torch.optim import SGD, AdamW
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from conformance.table import same
from lookaround import Lookahead, Lookaround

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS, MIDDLE = 11, 5
WRAPS = {
    "lookahead": lambda model: Lookahead(SGD(model.parameters(), lr=0.05, momentum=0.9), k=3, alpha=0.5),
    "lookaround": lambda model: Lookaround(AdamW(model.parameters(), lr=0.01), branches=3, k=2, model=model),
}
every_wrap = pytest.mark.parametrize("name", WRAPS)


class Sentences(Dataset):
    """Forty sequences of eight tokens out of sixteen."""

    def __init__(self, seed):
        self.tokens = torch.randint(16, (40, 8), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Recorded(TrainerCallback):
    """What the model was given in training, to be given again by hand, and what evaluation gave."""

    def __init__(self, model):
        self.inputs, self.evaluated, self.losses = [], [], []
        model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, model, args, kwargs):
        (self.inputs if model.training else self.evaluated).append((args, kwargs))

    def on_evaluate(self, args, state, control, metrics=None, **_):
        self.losses.append(metrics["eval_loss"])


def language_model(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return GPT2LMHeadModel(config)


def trainer_of(name, folder, seed=0):
    model = language_model(seed)
    optimizer = WRAPS[name](model)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=40,
        lr_scheduler_type="linear",
        max_grad_norm=0.0,
        eval_strategy="steps",
        eval_steps=MIDDLE,
        save_strategy="steps",
        save_steps=MIDDLE,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (2 * STEPS))
    recorded = Recorded(model)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Sentences(1),
        eval_dataset=Sentences(2),
        optimizers=(optimizer, rates),
        callbacks=[recorded],
    )
    return trainer, model, optimizer, recorded


def by_hand(name, inputs, steps):
    model = language_model()
    optimizer = WRAPS[name](model)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - step / (2 * STEPS))
        args, kwargs = inputs[step]
        model.train()
        model(*args, **kwargs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def evaluate(model, inputs):
    args, kwargs = inputs
    with torch.no_grad():
        return model.eval()(*args, **kwargs).loss.item()


@every_wrap
def test_it_trains_evaluates_and_saves_as_by_hand(name, tmp_path):
    trainer, model, optimizer, recorded = trainer_of(name, tmp_path)
    trainer.train()
    plain_model, plain = by_hand(name, recorded.inputs, STEPS)
    with plain.averaged():  # it evaluates at the end, and leaves the optimizer in evaluation mode
        assert same(model.state_dict(), plain_model.state_dict())
    optimizer.train()
    assert same(model.state_dict(), plain_model.state_dict())
    for steps, loss in zip((MIDDLE, 2 * MIDDLE, STEPS), recorded.losses, strict=True):
        plain_model, plain = by_hand(name, recorded.inputs, steps)
        training = evaluate(plain_model, recorded.evaluated[0])
        with plain.averaged():
            assert loss == pytest.approx(evaluate(plain_model, recorded.evaluated[0]), rel=1e-6)
            assert loss != pytest.approx(training, rel=1e-6)
            saved = load_file(tmp_path / f"checkpoint-{steps}" / "model.safetensors")
            theirs = plain_model.state_dict()
            assert all(torch.equal(value, theirs[key]) for key, value in saved.items())


@every_wrap
def test_it_resumes_from_its_checkpoint_in_the_middle_of_a_round(name, tmp_path):
    """Saved right after an evaluation, in evaluation mode: the model file has the average, the optimizer's the training weights."""
    trainer, model, optimizer, _ = trainer_of(name, tmp_path / "whole")
    trainer.train()
    resumed_trainer, resumed_model, resumed, _ = trainer_of(name, tmp_path / "resumed", seed=5)
    resumed_trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{MIDDLE}"))
    optimizer.train(), resumed.train()
    assert same(list(resumed_model.parameters()), list(model.parameters()))
    assert same(resumed.state_dict(), optimizer.state_dict())
