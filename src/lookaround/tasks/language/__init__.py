"""Prediction of the next token of a text."""

from lookaround.tasks.language.config import LanguageConfig, preset
from lookaround.tasks.language.files import load_language
from lookaround.tasks.language.task import LanguageTask

__all__ = ["LanguageConfig", "LanguageTask", "load_language", "preset"]
