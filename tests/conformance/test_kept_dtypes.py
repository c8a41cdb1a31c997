"""float32 state of bfloat16 weights stays float32 on every way of a checkpoint, and follows weights of another dtype."""

import copy
import io
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from conformance.table import same
from lookaround import Lookahead, Lookaround

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*torch.distributed.*:UserWarning")


class Wide(torch.optim.SGD):
    """Momentum in float32 whatever the weights are, also in a list and in a dictionary."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in [p for p in group["params"] if p.grad is not None]:
                state = self.state[p]
                momentum = state.setdefault("momentum", torch.zeros_like(p, dtype=torch.float32))
                nested = state.setdefault("nested", {"factors": [torch.zeros(1)], "narrow": torch.zeros_like(p)})
                nested["factors"][0].add_(p.grad.float().sum() / 3)
                nested["narrow"].add_(p.grad)
                momentum.mul_(0.9).add_(p.grad.float() / 3)
                p.sub_((group["lr"] * (momentum + nested["factors"][0])).to(p.dtype))


INNER = {
    "ASGD": lambda params: torch.optim.ASGD(params, lr=0.05),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=0.05),
    "nested": lambda params: Wide(params, lr=0.05),
}
WRAPS = {
    "lookahead": lambda inner: Lookahead(inner, k=3),
    "lookaround": lambda inner: Lookaround(inner, branches=3, k=3),
    "lookaround, alpha": lambda inner: Lookaround(inner, branches=2, k=3, alpha=0.5),
    "around a lookahead": lambda inner: Lookaround(Lookahead(inner, k=2), branches=2, k=3),
}


class Run:
    def __init__(self, inner, wrap, dtype=torch.bfloat16):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).to(dtype)
        self.optimizer = wrap(inner(list(self.model.parameters())))

    def train(self, steps, start=0):
        for step in range(start, steps):
            generator = torch.Generator().manual_seed(step)
            batch = torch.randn(4, 3, generator=generator).to(next(self.model.parameters()).dtype)
            self.optimizer.zero_grad()
            self.model(batch).square().sum().backward()
            self.optimizer.step()
        return self


def through_file(whole, resumed, folder):
    buffer = io.BytesIO()
    torch.save([whole.model.state_dict(), whole.optimizer.state_dict()], buffer)
    buffer.seek(0)
    model, optimizer = torch.load(buffer, weights_only=True)
    resumed.model.load_state_dict(model)
    resumed.optimizer.load_state_dict(optimizer)


def through_functions(whole, resumed, folder, **options):
    options = StateDictOptions(**options)
    model, optimizer = copy.deepcopy(get_state_dict(whole.model, whole.optimizer, options=options))
    set_state_dict(
        resumed.model, resumed.optimizer, model_state_dict=model, optim_state_dict=optimizer, options=options
    )


def through_dcp(whole, resumed, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = dict(zip(("model", "optimizer"), get_state_dict(whole.model, whole.optimizer), strict=True))
        dcp.save(saved, checkpoint_id=folder, no_dist=True)
        template = dict(zip(("model", "optimizer"), get_state_dict(resumed.model, resumed.optimizer), strict=True))
        dcp.load(template, checkpoint_id=folder, no_dist=True)
    set_state_dict(
        resumed.model, resumed.optimizer, model_state_dict=template["model"], optim_state_dict=template["optimizer"]
    )


WAYS = {
    "file": through_file,
    "functions": through_functions,
    "dcp": through_dcp,
}


def dtypes(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    if isinstance(value, dict):
        return {key: dtypes(each) for key, each in value.items()}
    return [dtypes(each) for each in value] if isinstance(value, list | tuple) else None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("inner", INNER)
def test_a_resumed_run_has_the_dtypes_and_the_values(inner, wrap, way, tmp_path):
    whole = Run(INNER[inner], WRAPS[wrap]).train(7)
    resumed = Run(INNER[inner], WRAPS[wrap])
    WAYS[way](whole, resumed, tmp_path)
    saved = whole.optimizer.state_dict()
    assert "torch.float32" in str(dtypes(saved))
    assert dtypes(resumed.optimizer.state_dict()["state"]) == dtypes(saved["state"])
    whole.train(11, 7)
    resumed.train(11, 7)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert same(whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"])


def test_a_flattened_state_has_the_dtypes():
    whole, resumed = (Run(INNER["ASGD"], WRAPS["lookaround"]) for _ in range(2))
    through_functions(whole.train(7), resumed, None, flatten_optimizer_state_dict=True)
    assert dtypes(resumed.optimizer.state_dict()["state"]) == dtypes(whole.optimizer.state_dict()["state"])
    whole.train(11, 7)
    resumed.train(11, 7)
    assert same(whole.model.state_dict(), resumed.model.state_dict())


@pytest.mark.parametrize("wrap", WRAPS)
def test_weights_of_another_dtype_by_now_have_state_of_theirs(wrap):
    """As torch does it: what was noted is the parameter's dtype at the time, and it is another one."""
    whole = Run(INNER["nested"], WRAPS[wrap]).train(7)
    resumed = Run(INNER["nested"], WRAPS[wrap], torch.float64)
    resumed.optimizer.load_state_dict(whole.optimizer.state_dict())
    assert resumed.optimizer.state[resumed.model[0].weight]["momentum"].dtype == torch.float64
    resumed.train(9, 7)
