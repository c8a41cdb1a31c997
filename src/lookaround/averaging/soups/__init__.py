"""Model soups: one model whose weights are the mean of several finished ones, in memory or from files to files."""

from lookaround.averaging.soups.memory import Soup, greedy_soup, uniform_soup
from lookaround.averaging.soups.recipe import RecipeLine
from lookaround.averaging.soups.stock import model_stock_files
from lookaround.averaging.soups.streamed import Plan, plan_soup, soup_files

__all__ = ["Plan", "RecipeLine", "Soup", "greedy_soup", "model_stock_files", "plan_soup", "soup_files", "uniform_soup"]
