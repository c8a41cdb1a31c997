"""Lightning's Trainer, automatic and manual optimisation: the hand-written loop, bit for bit, also from a checkpoint in mid-round."""

import lightning
import pytest
from torch.utils.data import DataLoader

from conformance.table import same
from frameworks.loops import WRAPS, around, by_hand, closed, loss_of, network, shown

pytestmark = pytest.mark.filterwarnings("ignore")  # the framework's own, about workers and logging
every_wrap = pytest.mark.parametrize("name", WRAPS)
EPOCHS, BATCHES = 2, 5
STEPS = EPOCHS * BATCHES


class Module(lightning.LightningModule):
    """Trains the network on the batches of the hand-written loops."""

    def __init__(self, name, automatic, seed=0):
        super().__init__()
        self.net, self.name = network(seed), name
        self.automatic_optimization = automatic
        self.shown = []

    def configure_optimizers(self):
        return WRAPS[self.name](self.net)

    def training_step(self, number, _):
        step = BATCHES * self.current_epoch + int(number)
        if self.automatic_optimization:
            return loss_of(self.net, step)
        optimizer = self.optimizers()
        assert optimizer is not optimizer.optimizer  # a proxy
        for branch in optimizer.around():
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, step, branch))
            optimizer.step()
        return None

    def on_train_batch_end(self, *_):
        self.shown.append(shown(self.net, self.optimizers()))


class Validated(Module):
    """Shows the average in validation: `eval` and `train` of the optimizer in the hooks that Lightning has for the model's."""

    def on_validation_model_eval(self):
        super().on_validation_model_eval()
        self.optimizers().eval()

    def on_validation_model_train(self):
        super().on_validation_model_train()
        self.optimizers().train()

    def validation_step(self, *_):
        self.seen = [*getattr(self, "seen", []), {k: v.clone() for k, v in self.net.state_dict().items()}]


def fit(module, folder, epochs=EPOCHS, resume=None, validation=None, **settings):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        limit_train_batches=BATCHES,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(module, DataLoader(range(BATCHES), batch_size=1), validation, ckpt_path=resume)
    return trainer


def assert_same(module, trainer, model, optimizer):
    assert same(module.net.state_dict(), model.state_dict())
    assert same(trainer.optimizers[0].state_dict(), optimizer.state_dict())


@every_wrap
@pytest.mark.parametrize("automatic", [True, False])
def test_it_trains_and_shows_the_average_as_the_loop_by_hand(name, automatic, tmp_path):
    """Automatic optimisation takes one step a batch, in a closure; manual optimisation goes around the proxy."""
    module = Module(name, automatic)
    trainer = fit(module, tmp_path)
    loop = closed if automatic else around
    assert_same(module, trainer, *by_hand(name, loop, STEPS))
    for steps, state in enumerate(module.shown, 1):
        assert same(state, shown(*by_hand(name, loop, steps)))


@every_wrap
@pytest.mark.parametrize("automatic", [True, False])
def test_a_checkpoint_in_the_middle_of_a_round_goes_on(name, automatic, tmp_path):
    """Its own checkpoint, of model, optimizer and loops, into a new module."""
    fit(Module(name, automatic), tmp_path, epochs=1).save_checkpoint(tmp_path / "middle.ckpt")
    module = Module(name, automatic, seed=5)
    trainer = fit(module, tmp_path, resume=tmp_path / "middle.ckpt")
    assert len(module.shown) == BATCHES
    assert_same(module, trainer, *by_hand(name, closed if automatic else around, STEPS))


@every_wrap
def test_a_validation_in_between_can_be_of_the_average(name, tmp_path):
    module = Validated(name, automatic=True)
    trainer = fit(module, tmp_path, validation=DataLoader(range(1), batch_size=1), val_check_interval=2)
    assert_same(module, trainer, *by_hand(name, closed, STEPS))
    for steps, state in zip((2, 4, 7, 9), module.seen, strict=True):
        assert same(state, shown(*by_hand(name, closed, steps)))
