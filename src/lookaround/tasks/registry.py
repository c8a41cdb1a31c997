"""Tasks by name: what `lookaround train --task` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lookaround.tasks.base import Task, TaskConfig
from lookaround.tasks.language import LanguageConfig, LanguageTask
from lookaround.tasks.language import preset as language_preset
from lookaround.tasks.translation import TranslationConfig, TranslationTask
from lookaround.tasks.vision import VisionConfig, VisionTask, preset


@dataclass(frozen=True)
class TaskEntry:
    """How a task is configured and loaded.

    Attributes:
        config: the dataclass of its settings.
        preset: a configuration to start from, given what the user chose of the settings (as text), of which it may read some.
        load: the task of a configuration, with its data on a device; raises ValueError in one line for what cannot be used.
    """

    config: type[Any]
    preset: Callable[[Mapping[str, str]], TaskConfig]
    load: Callable[[Any, torch.device], Task]


def _vision(chosen: Mapping[str, str]) -> VisionConfig:
    return preset(chosen.get("data", VisionConfig.data))


TASKS: dict[str, TaskEntry] = {
    "vision": TaskEntry(VisionConfig, _vision, VisionTask.load),
    "language": TaskEntry(LanguageConfig, lambda chosen: language_preset(chosen.get("network")), LanguageTask.load),
    "translation": TaskEntry(TranslationConfig, lambda chosen: TranslationConfig(), TranslationTask.load),
}


def task_entry(name: str) -> TaskEntry:
    """The task of this name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]
