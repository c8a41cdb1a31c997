"""Tables of text: Markdown that reads as well in a terminal, LaTeX, CSV, and what fits a width."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

Line = Sequence[str]
# Names are not broken into narrower parts than this to keep the other columns side by side.
_LEAST_NAME = 20
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "α": r"$\alpha$",
}


def markdown(header: Line, rows: Sequence[Line]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others, which hold numbers, to the right.

    Example:
        >>> from lookaround.experiment.tables import markdown
        >>> print(markdown(["method", "NLL"], [["sgd", "0.1"], ["a|b", "–"]]))
        | method | NLL |
        | ------ | --: |
        | sgd    | 0.1 |
        | a\\|b   |   – |
    """
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (header, *rows)]
    widths = _widths(lines)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_bordered(line, widths) for line in [lines[0], rule, *lines[1:]])


def _widths(lines: Sequence[Line]) -> list[int]:
    return [max(2, *map(len, column)) for column in zip(*lines, strict=True)]


def _bordered(cells: Line, widths: Sequence[int]) -> str:
    return f"| {' | '.join(_aligned(cells, widths))} |"


def _aligned(cells: Line, widths: Sequence[int]) -> Iterator[str]:
    yield cells[0].ljust(widths[0])
    for cell, width in zip(cells[1:], widths[1:], strict=True):
        yield cell.rjust(width)


def latex(header: Line, rows: Sequence[Line]) -> str:
    """A ``tabular`` with the rules of the booktabs package; text is escaped.

    Example:
        >>> from lookaround.experiment.tables import latex
        >>> print(latex(["method", "top-1 %"], [["sgd", "97.00 ± 0.50"]]))
        \\begin{tabular}{lr}
        \\toprule
        method & top-1 \\% \\\\
        \\midrule
        sgd & 97.00 $\\pm$ 0.50 \\\\
        \\bottomrule
        \\end{tabular}
    """
    first, *others = [" & ".join(map(_escaped, line)) + r" \\" for line in (header, *rows)]
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", first, r"\midrule", *others, r"\bottomrule", r"\end{tabular}"]
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def comma_separated(header: Line, rows: Sequence[Line]) -> str:
    """CSV as RFC 4180 has it, with lines that end in a newline alone.

    Example:
        >>> from lookaround.experiment.tables import comma_separated
        >>> comma_separated(["method", "n"], [["lookaround:k=2,lr=0.1", "3"]])
        'method,n\\n"lookaround:k=2,lr=0.1",3\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()


def fitted(header: Line, rows: Sequence[Line], width: int = 80) -> str:
    """The table for a terminal of ``width`` columns: what does not fit stands below, with the first column again.

    Long names in the first column go on in further lines. A column too wide to stand beside them is left as it is.

    Example:
        >>> from lookaround.experiment.tables import fitted
        >>> print(fitted(["method", "top-1 %", "NLL"], [["sgd", "97.0 ± 0.5", "0.10 ± 0.02"]], width=24))
        method     top-1 %
        ------  ----------
        sgd     97.0 ± 0.5
        <BLANKLINE>
        method          NLL
        ------  -----------
        sgd     0.10 ± 0.02
    """
    widths = _widths([header, *rows])
    widths[0] = _name_width([line[0] for line in (header, *rows)], widths, width)
    blocks, taken = [[0]], widths[0]
    for column in range(1, len(header)):
        if len(blocks[-1]) > 1 and taken + 2 + widths[column] > width:
            blocks.append([0])
            taken = widths[0]
        blocks[-1].append(column)
        taken += 2 + widths[column]
    return "\n\n".join(_block(header, rows, widths, columns) for columns in blocks)


def _name_width(names: Sequence[str], widths: Sequence[int], width: int) -> int:
    """Of the first column: what the others leave when they stand side by side, or else as little as names may have."""
    left = width - sum(2 + other for other in widths[1:])
    room = min(widths[0], max(left, _LEAST_NAME))
    return max(len(part) for name in names for part in _wrapped(name, room))


def _block(header: Line, rows: Sequence[Line], widths: Sequence[int], columns: Sequence[int]) -> str:
    chosen = [widths[column] for column in columns]
    lines = []
    for row in (header, *rows):
        first, *more = _wrapped(row[0], widths[0])
        lines.append(list(_aligned([first, *(row[column] for column in columns[1:])], chosen)))
        lines += [[part] for part in more]
        if row is header:
            lines.append(["-" * width for width in chosen])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _wrapped(name: str, width: int) -> list[str]:
    """The name in parts of at most ``width``, broken after a comma or a colon where there is one; further parts are set in."""
    if len(name) <= width:
        return [name]
    at = max(name.rfind(mark, 0, width) for mark in ",: ") + 1
    at = at if at > 2 else width
    return [name[:at].rstrip(), *_wrapped("  " + name[at:].lstrip(), width)]
