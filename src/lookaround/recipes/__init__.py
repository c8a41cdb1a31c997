"""The papers' tables and figures on training: complete experiments, with the printed numbers beside."""

from lookaround.recipes.base import Part, Recipe, Row
from lookaround.recipes.registry import RECIPES, make
from lookaround.recipes.running import run

__all__ = ["RECIPES", "Part", "Recipe", "Row", "make", "run"]
