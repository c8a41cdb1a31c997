"""The networks of the language task: nothing of the future is seen, and carried state is as if the text had not been cut."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lookaround.tasks.language.networks import LSTM, LSTMSize, Trained, Transformer, TransformerSize, Window

SMALL = LSTMSize(embedding=6, hidden=8, layers=2, dropout=0, dropout_input=0, dropout_hidden=0)
NETWORKS = {
    "lstm": lambda: LSTM(11, SMALL),
    "transformer": lambda: Transformer(11, TransformerSize(width=8, layers=2, heads=2, hidden=16, dropout=0.0)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_future_token_changes_a_logit_and_every_past_one_does(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().double().eval()
    tokens = torch.randint(11, (2, 9))
    logits = network(Window(tokens))
    for place in range(9):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % 11
        changed = (network(Window(other)) - logits).abs().amax(-1) > 1e-12
        assert not changed[:, :place].any()
        assert changed[:, place:].all()


def test_a_stream_of_windows_reads_as_the_uncut_text() -> None:
    torch.manual_seed(0)
    network = LSTM(11, SMALL).double().eval()
    tokens = torch.randint(11, (3, 12))
    whole = network(Window(tokens))
    parts = [network(Window(part, position=i)) for i, part in enumerate(tokens.split(4, dim=1))]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_the_first_window_of_a_text_starts_from_nothing() -> None:
    torch.manual_seed(0)
    network = LSTM(11, SMALL).eval()
    tokens = torch.randint(11, (3, 4))
    first = network(Window(tokens))
    network(Window(tokens, position=1))
    torch.testing.assert_close(network(Window(tokens)), first, rtol=0, atol=0)


def test_a_window_read_twice_starts_twice_from_the_same_state() -> None:
    torch.manual_seed(0)
    network = LSTM(11, SMALL).train()
    tokens = torch.randint(11, (3, 4))
    network(Window(tokens, 0, 0))
    once = network(Window(tokens, 0, 1))
    again = network(Window(tokens, 0, 1))
    torch.testing.assert_close(once.logits, again.logits, rtol=0, atol=0)


def test_streams_do_not_mix_and_evaluation_leaves_training_alone() -> None:
    torch.manual_seed(0)
    network = LSTM(11, SMALL).train()
    tokens = torch.randint(11, (4, 3, 4))
    alone = deepcopy(network)
    alone(Window(tokens[0], 0, 0))
    expected = alone(Window(tokens[1], 0, 1)).logits
    network(Window(tokens[0], 0, 0))
    network(Window(tokens[2], 1, 0))
    network.eval()(Window(tokens[3][:2]))
    got = network.train()(Window(tokens[1], 0, 1)).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_carried_state_is_in_the_state_dict_and_nothing_is_backpropagated_through_it() -> None:
    torch.manual_seed(0)
    network = LSTM(11, SMALL).train()
    tokens = torch.randint(11, (2, 3, 4))
    network(Window(tokens[0], 0, 0))
    loaded = LSTM(11, SMALL).train()
    loaded.load_state_dict(network.state_dict())
    one, other = network(Window(tokens[1], 0, 1)), loaded(Window(tokens[1], 0, 1))
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=0)
    one.logits.sum().backward()
    other.logits.sum().backward()
    torch.testing.assert_close(network.vectors.grad, loaded.vectors.grad, rtol=0, atol=0)


def test_the_lstm_is_torchs_with_tied_vectors() -> None:
    torch.manual_seed(0)
    network = LSTM(11, LSTMSize(embedding=6, layers=1, dropout=0, dropout_input=0)).eval()
    tokens = torch.randint(11, (2, 5))
    output, _ = network.layers[0](F.embedding(tokens, network.vectors))
    expected = output @ network.vectors.T + network.bias
    torch.testing.assert_close(network(Window(tokens)), expected)


def test_penalties_are_those_of_merity_et_al() -> None:
    torch.manual_seed(0)
    size = LSTMSize(embedding=6, layers=1, dropout=0, dropout_input=0, activation=2.0, slowness=0.5)
    network = LSTM(11, size).train()
    tokens = torch.randint(11, (2, 5))
    said = network(Window(tokens, 0, 0))
    output, _ = nn.LSTM.forward(network.layers[0], F.embedding(tokens, network.vectors))
    change = output[:, 1:] - output[:, :-1]
    torch.testing.assert_close(said.penalty, 2 * (output**2).mean() + 0.5 * (change**2).mean())


def test_dropped_weights_and_locked_masks() -> None:
    torch.manual_seed(0)
    network = LSTM(11, LSTMSize(embedding=6, layers=1, dropout=0, dropout_input=0, weight_drop=0.5)).train()
    tokens = torch.randint(11, (2, 5))
    recurrent = network.layers[0].weight_hh_l0
    before = recurrent.detach().clone()
    torch.manual_seed(7)
    said = network(Window(tokens, 0, 0))
    torch.manual_seed(7)
    plain = deepcopy(network)
    plain.layers[0].weight_hh_l0.data = F.dropout(recurrent.detach(), 0.5)
    torch.testing.assert_close(said.logits, plain.eval()(Window(tokens)))
    torch.testing.assert_close(recurrent.detach(), before, rtol=0, atol=0)
    said.logits.sum().backward()
    assert recurrent.grad is not None
    assert recurrent.grad.ne(0).float().mean() < 0.75


def test_training_says_logits_and_a_penalty() -> None:
    for build in NETWORKS.values():
        said = build().train()(Window(torch.zeros(1, 2, dtype=torch.int64)))
        assert isinstance(said, Trained)
        assert said.penalty == 0


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of heads, got width 10 and heads 4"):
        Transformer(11, TransformerSize(width=10, heads=4))
