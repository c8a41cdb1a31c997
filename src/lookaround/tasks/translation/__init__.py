"""Translation of sentences."""

from lookaround.tasks.translation.config import TranslationConfig
from lookaround.tasks.translation.files import load_translator
from lookaround.tasks.translation.task import TranslationTask

__all__ = ["TranslationConfig", "TranslationTask", "load_translator"]
