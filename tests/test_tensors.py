"""Arithmetic on lists of tensors: equal to the plain formula, in blocks, whatever the layout and the dtype."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookaround import tensors
from lookaround.optim.average import Alone, settle, towards

SHAPES = [(), (0,), (3,), (4, 5), (2, 3, 4, 4), (200_003,), (700, 300)]


def draw(seed, dtype=torch.float32, layout=lambda t: t):
    generator = torch.Generator().manual_seed(seed)
    return [layout(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def transposed(tensor):
    return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor


def channels_last(tensor):
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def gaps(tensor):
    return torch.stack([tensor, tensor], -1)[..., 0]


LAYOUTS = {"plain": lambda t: t, "transposed": transposed, "channels last": channels_last, "gaps": gaps}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@torch.no_grad()
def average(branches, slow=None, alpha=1.0, only=None):
    """The average step over lists, in place."""
    beside = [slow] if slow is not None else []
    means = Alone(len(branches)).means(branches, [True] * len(branches), *beside)
    settle(means, len(branches), partial(towards, alpha), only)


@layouts
@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
def test_lerp_is_the_formula(layout, other, weight):
    ours, theirs = draw(0, layout=LAYOUTS[layout]), draw(1, layout=LAYOUTS[other])
    expected = [torch.lerp(a, b, weight) for a, b in zip(ours, theirs, strict=True)]
    strides = [t.stride() for t in ours]
    tensors.lerp_each_([ours], theirs, [weight])
    assert all(map(torch.equal, ours, expected))
    assert strides == [t.stride() for t in ours]


@layouts
@pytest.mark.parametrize("write_back", [True, False])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.4, 1.0])
def test_average_is_the_formula_and_goes_where_it_is_asked_to(layout, write_back, alpha):
    branches = [draw(i, torch.float64, LAYOUTS[layout]) for i in range(3)]
    slow = draw(9, torch.float64) if alpha is not None else None
    means = [sum(column) / 3 for column in zip(*branches, strict=True)]
    expected = means if slow is None else [p + alpha * (m - p) for p, m in zip(slow, means, strict=True)]
    kept = [[t.clone() for t in of] for of in (*branches[1:], slow or [])]
    average(branches, slow, 1.0 if alpha is None else alpha, None if write_back else 0)
    torch.testing.assert_close(branches[0], expected)
    for of, before in zip((*branches[1:], slow or []), kept, strict=True):
        for tensor, value, result in zip(of, before, branches[0], strict=False):
            assert torch.equal(tensor, result if write_back else value)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.floats(-(2.0**100), 2.0**100, width=32), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_what_all_branches_agree_on_is_left_exactly_so(count, value, alpha):
    branches = [[torch.full((2,), value)] for _ in range(count)]
    average(branches, [torch.full((2,), value)], alpha)
    assert all(torch.equal(of[0], torch.full((2,), value)) for of in branches)


def test_a_mean_does_not_overflow_where_a_sum_would():
    large = torch.finfo(torch.float32).max
    branches = [[torch.full((2,), large)] for _ in range(3)]
    average(branches)
    assert branches[0][0].tolist() == [large, large]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_averaged_in_float32(dtype):
    """1 and twice 1 + ulp: their mean rounds up; rounded after every addition in the dtype it would not."""
    ulp = torch.finfo(dtype).eps
    values = [1.0, 1.0 + ulp, 1.0 + ulp, 1.0, 1.0 + ulp]
    branches = [[torch.tensor([v], dtype=dtype)] for v in values]
    average(branches)
    assert all(of[0].item() == 1.0 + ulp for of in branches)


def test_mixed_dtypes_in_one_list_stay_apart():
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.complex64]
    ours = [torch.zeros(3, dtype=d) for d in dtypes]
    average([ours, [torch.ones(3, dtype=d) for d in dtypes]])
    assert [t.dtype for t in ours] == dtypes
    assert all((t == 0.5).all() for t in ours)


def test_complex_numbers_are_pairs_of_reals():
    ours, theirs = [torch.tensor([1 + 2j])], [torch.tensor([3 + 6j])]
    average([ours, theirs])
    assert ours[0].tolist() == [2 + 4j]


def test_blocks_cover_every_element_once():
    lists = draw(0)
    seen = [torch.zeros_like(t) for t in lists]
    for (block,) in tensors.blocks(seen):
        torch._foreach_add_(block, 1.0)
        assert sum(t.numel() for t in block) <= tensors._CPU_BLOCK or len(block) == 1
    assert all((t == 1).all() for t in seen)


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError):
        list(tensors.blocks([torch.zeros(1)], []))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_one_bad_value_among_many_is_found(bad, dtype):
    good = draw(0)
    assert tensors.all_finite(good)
    assert tensors.all_finite([])
    weights = torch.ones(1000, dtype=dtype)
    weights[777] = bad
    assert tensors.finite_each([*good, weights, torch.tensor(3)]) == [True] * len(good) + [False, True]
    assert not tensors.all_finite([*good, weights])


def test_values_beyond_float32_are_finite_in_float64():
    assert tensors.all_finite([torch.tensor(1e300, dtype=torch.float64), torch.ones(1)])


def test_clone_keeps_layout_and_leaves_the_graph():
    weight = torch.nn.Parameter(torch.randn(3, 4).t())
    (copy,) = tensors.clone([weight])
    assert copy.stride() == weight.stride()
    assert not copy.requires_grad
    assert copy.data_ptr() != weight.data_ptr()
    (wide,) = tensors.clone([weight.bfloat16()], wide=True)
    assert wide.dtype == torch.float32


@layouts
def test_dot_is_the_inner_product(layout):
    ours, theirs = draw(0, layout=LAYOUTS[layout]), draw(1)
    expected = sum(float((a.double() * b.double()).sum()) for a, b in zip(ours, theirs, strict=True))
    assert float(tensors.dot(ours, theirs)) == pytest.approx(expected, rel=1e-12)


def test_lerp_each_moves_several_averages_at_once():
    sources, averages = draw(0), [draw(1), draw(2), draw(3)]
    expected = [
        [torch.lerp(a, s, w) for a, s in zip(of, sources, strict=True)]
        for of, w in zip(averages, (0.2, 1.0, 0.9), strict=True)
    ]
    tensors.lerp_each_(averages, sources, (0.2, 1.0, 0.9))
    for of, values in zip(averages, expected, strict=True):
        assert all(map(torch.equal, of, values))


def test_every_change_is_seen_by_autograd():
    for change in (
        lambda w, o: tensors.lerp_each_([[w]], [o], [0.5]),
        lambda w, o: tensors.copy_([w], [o]),
        lambda w, o: average([[w], [o]]),
    ):
        weight, other = torch.nn.Parameter(torch.ones(200_000)), torch.zeros(200_000)
        before = weight._version
        change(weight, other)
        assert weight._version > before
