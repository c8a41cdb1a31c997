"""Model soups: one model whose weights are the mean of several finished ones, in memory or from files to files."""

from lookaround.averaging.soups.memory import Soup, greedy_soup, uniform_soup
from lookaround.averaging.soups.recipe import RecipeLine
from lookaround.averaging.soups.streamed import soup_files, soup_recipe

__all__ = ["RecipeLine", "Soup", "greedy_soup", "soup_files", "soup_recipe", "uniform_soup"]
