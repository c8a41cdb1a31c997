"""Which kinds of numbers a soup averages, which it copies and which it refuses."""

import torch

_QUANTISED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
_REFUSED = {
    torch.float8_e8m0fnu: "common exponents of blocks of other numbers",
    torch.float4_e2m1fn_x2: "4-bit floats, whose scales stand in another tensor",
    torch.complex32: "a complex type without arithmetic; save the model in complex64",
} | dict.fromkeys(_QUANTISED, "quantised numbers, whose scales stand elsewhere")


def is_averaged(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype are averaged; others (counters, masks) are copied from the first ingredient.

    >>> import torch
    >>> from lookaround.averaging.soups.dtypes import is_averaged
    >>> is_averaged(torch.bfloat16), is_averaged(torch.int64)
    (True, False)
    """
    return dtype.is_floating_point or dtype.is_complex


def check_dtype(name: str, dtype: torch.dtype, where: str) -> None:
    """Refuse numbers whose mean would mean nothing.

    Raises:
        ValueError: They are parts of values that are spread over several tensors.
    """
    if dtype in _REFUSED:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{where}: {name!r} has dtype {kind} ({_REFUSED[dtype]}) and cannot be averaged")
