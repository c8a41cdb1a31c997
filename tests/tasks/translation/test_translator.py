"""The translation network and the search: nothing of the future or of padding is seen, and the search finds what there is to find."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from lookaround.averaging import LogitEnsemble
from lookaround.tasks.text.subwords import BEGIN, END, PAD
from lookaround.tasks.translation.decoding import Search, translate
from lookaround.tasks.translation.network import Sentences, Translator, TranslatorSize

SIZE = TranslatorSize(width=8, layers=2, heads=2, hidden=16, dropout=0.0)


def network(vocabulary: int = 11) -> Translator:
    torch.manual_seed(0)
    return Translator(vocabulary, SIZE).double().eval()


def test_no_future_token_changes_a_logit_and_every_past_one_and_the_source_does() -> None:
    model, source, target = network(), torch.randint(3, 11, (2, 5)), torch.randint(3, 11, (2, 6))
    logits = model(Sentences(source, target))
    for place in range(6):
        other = target.clone()
        other[:, place] = 3 + (other[:, place] - 2) % 8
        changed = (model(Sentences(source, other)) - logits).abs().amax(-1) > 1e-12
        assert not changed[:, :place].any()
        assert changed[:, place:].all()
    for place in range(5):
        other = source.clone()
        other[:, place] = 3 + (other[:, place] - 2) % 8
        assert ((model(Sentences(other, target)) - logits).abs().amax(-1) > 1e-12).all()


def test_padding_changes_nothing() -> None:
    model, source, target = network(), torch.randint(3, 11, (1, 5)), torch.randint(3, 11, (1, 6))
    padded_source = torch.cat([source, source.new_full((1, 3), PAD)], 1)
    padded_target = torch.cat([target, target.new_full((1, 2), PAD)], 1)
    alone = model(Sentences(source, target))
    together = model(Sentences(padded_source, padded_target))[:, :6]
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("first", [1, 3])
def test_a_search_that_keeps_what_it_has_read_sees_what_one_that_begins_anew_each_time_sees(first: int) -> None:
    model, source, target = network(), torch.randint(3, 11, (3, 5)), torch.randint(3, 11, (3, 9))
    source[1, 3:] = PAD
    memory: dict = {}
    for length in range(first, 10):
        last = model(Sentences(source, target[:, :length], memory))
        torch.testing.assert_close(last, model(Sentences(source, target[:, :length]))[:, -1:], rtol=0, atol=1e-14)
        rows = torch.tensor([2, 0, 2] if length % 2 else [1, 2, 0])
        source, target = source[rows], target[rows]
        memory[model].past.take(rows)
        target[:, length:] = torch.randint(3, 11, (3, 9 - length))
    assert list(memory) == [model]


def test_a_search_reads_each_token_once() -> None:
    model, sources = network(), torch.randint(3, 11, (3, 4))
    with torch.no_grad():
        model.embedding.weight[END] = 0  # so that no translation ends
        model.norms[1].bias.fill_(1.0)
        model.embedding.weight[3:] = model.embedding.weight[3:].abs()
    read: list[int] = []
    model.decoder[1].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    translations = translate(model, sources, Search(beam=2, longer=3))
    assert {len(translation) for translation in translations} == {7}
    assert read == [1] * 7


class Forgetful(nn.Module):
    """The same network without a memory."""

    def __init__(self, model: Translator) -> None:
        super().__init__()
        self.model = model

    def forward(self, read: Sentences) -> Tensor:
        return self.model(Sentences(read.source, read.target))[:, -1:]


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_is_found_with_and_without_what_was_read_by_one_network_and_by_several(beam: int, seed: int) -> None:
    torch.manual_seed(seed)
    models = [Translator(11, SIZE).double().eval() for _ in range(2)]
    sources = torch.randint(3, 11, (6, 5))
    sources[::2, 3:] = PAD
    search = Search(beam=beam, longer=6)
    for made in (models[0], LogitEnsemble(models).eval()):
        whole = [Forgetful(model) for model in models][: 1 if made is models[0] else 2]
        anew = whole[0] if len(whole) == 1 else LogitEnsemble(whole).eval()
        assert translate(made, sources, search) == translate(anew, sources, search)


def best_by_trying_all(model: Translator, source: Tensor, search: Search) -> list[int]:
    """Every sequence that ends within the search's length, or is cut off there, scored as the search scores."""
    longest, words = len(source) + search.longer, range(2, 6)
    scores: dict[tuple[int, ...], float] = {}
    for length in range(1, longest + 1):
        for words_said in product(words, repeat=length):
            whole = words_said[-1] == END or length == longest
            if END in words_said[:-1] or not whole:
                continue
            read = torch.tensor([[BEGIN, *words_said[:-1]]])
            with torch.no_grad():
                said = model(Sentences(source[None], read)).log_softmax(-1)[0]
            total = sum(said[i, word].item() for i, word in enumerate(words_said))
            scores[words_said] = total / ((5 + length) / 6) ** search.length_penalty
    return [word for word in max(scores, key=scores.__getitem__) if word != END]


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_wide_enough_finds_the_best_of_all_sequences(seed: int) -> None:
    torch.manual_seed(seed)
    model = Translator(6, SIZE).double().eval()
    with torch.no_grad():
        model.embedding.weight[:2] = 0
        model.embedding.weight[2:].mul_(3)
    source = torch.tensor([3, 4])

    def predict(sentences: Sentences) -> Tensor:
        logits = model(sentences)
        logits[..., :2] = -1e9  # neither padding nor the begin mark is ever said
        return logits

    search = Search(beam=300, length_penalty=0.6, longer=2)
    constrained = lambda sentences: predict(sentences)  # noqa: E731
    assert translate(constrained, source[None], search) == [best_by_trying_all(constrained, source, search)]


def test_greedy_search_takes_the_likeliest_word_each_time_and_stops_at_the_end() -> None:
    model = network()
    sources = torch.randint(3, 11, (3, 4))
    found = translate(model, sources, Search(beam=1, longer=3))
    for source, translation in zip(sources, found, strict=True):
        said = [BEGIN]
        while len(said) < 8:
            with torch.no_grad():
                word = model(Sentences(source[None], torch.tensor([said])))[0, -1].clone()
            word[PAD] = -torch.inf  # padding is no word
            said.append(int(word.argmax()))
            if said[-1] == END:
                break
        assert translation == [word for word in said[1:] if word != END]


def test_sentences_are_searched_for_as_if_alone() -> None:
    model = network()
    sources = torch.randint(3, 11, (5, 4))
    search = Search(beam=3, longer=4)
    together = translate(model, sources, search)
    assert together == [translate(model, source[None], search)[0] for source in sources]


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of heads, got width 10 and heads 4"):
        Translator(11, TranslatorSize(width=10, heads=4))


@pytest.mark.parametrize("beam", [1, 2])
def test_a_translation_that_does_not_end_is_as_long_whatever_stands_beside_its_sentence(beam: int) -> None:
    def endless(read: Sentences) -> torch.Tensor:
        logits = torch.zeros(*read.target.shape, 6)
        logits[..., 2] = -30.0
        logits[..., 4] = 1.0
        return logits

    sources = torch.tensor([[5, 2, 0, 0], [5, 5, 5, 2]])
    search = Search(beam=beam, longer=1)
    together = translate(endless, sources, search)
    assert together == [[4] * 3, [4] * 5]
    assert together == [translate(endless, sources[:1, :2], search)[0], translate(endless, sources[1:], search)[0]]
