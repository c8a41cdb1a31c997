"""BLEU and chrF, as ``sacrebleu`` computes them."""

from __future__ import annotations

from collections.abc import Sequence

from lookaround.tasks.text import TextError


def corpus_scores(translations: Sequence[str], references: Sequence[str], tokenize: str) -> dict[str, float]:
    """BLEU and chrF2 of a whole test set, each from 0 to 100.

    Args:
        translations: one a sentence.
        references: as many.
        tokenize: sacrebleu's tokenizer for BLEU: ``13a``, or ``none`` for text that is tokenized already.

    Raises:
        TextError: for an unknown tokenizer, or without ``sacrebleu``.

    Example:
        >>> corpus_scores(["a man rides a bike ."], ["a man rides a bike ."], "none")
        {'bleu': 100.0, 'chrf': 100.0}
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise TextError("BLEU needs sacrebleu: add it with: pip install '.[text]'") from error
    if tokenize not in BLEU.TOKENIZERS:
        raise TextError(f"--bleu-tokens takes {', '.join(BLEU.TOKENIZERS)}, got {tokenize!r}")
    # `force` only silences a warning that the text looks tokenized, which it is where nothing more is to be done to it.
    bleu = BLEU(tokenize=tokenize, force=True).corpus_score(list(translations), [list(references)])
    chrf = CHRF().corpus_score(list(translations), [list(references)])
    return {"bleu": round(bleu.score, 6), "chrf": round(chrf.score, 6)}
