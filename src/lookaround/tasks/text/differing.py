"""How the branches' copies of a minibatch of text differ."""

from __future__ import annotations

from dataclasses import dataclass

from lookaround.tasks.base import Copies


@dataclass(frozen=True)
class Differing:
    """How the branches' copies of a minibatch differ.

    Attributes:
        branches: what each does: nothing but its own place in the text or its own order (``windows``, ``order``);
            ``word-dropout``, blanks in the place of some tokens that are read, never of those that are predicted;
            ``bpe-dropout``, other subwords for the same text.
        word_dropout: probability of a blank.
        bpe_dropout: probability that a merge of subwords is left out.
        copies: ``independent``, each branch has its own place or order; ``shared``, all have the same.
    """

    branches: tuple[str, ...]
    word_dropout: float
    bpe_dropout: float
    copies: Copies

    def of(self, branch: int) -> str:
        """What a branch does."""
        return self.branches[branch % len(self.branches)]
