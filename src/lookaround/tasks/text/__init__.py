"""What language and translation share: reading text, words and subwords, layers of a Transformer."""

from lookaround.tasks.text.files import Text, TextError, find_part, read_text
from lookaround.tasks.text.subwords import Subwords, train_subwords
from lookaround.tasks.text.words import Words, count_words

__all__ = ["Subwords", "Text", "TextError", "Words", "count_words", "find_part", "read_text", "train_subwords"]
