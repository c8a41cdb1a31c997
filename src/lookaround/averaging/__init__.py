"""What collects weights or predictions: averages over time, over models and over predictions, and norm statistics done right."""

from lookaround.averaging.decay_rule import emulated_decay
from lookaround.averaging.ensemble import LogitEnsemble, SnapshotCollector
from lookaround.averaging.norm_stats import update_norm_stats
from lookaround.averaging.posthoc import Profile, Synthesis, posthoc_weights, synthesize
from lookaround.averaging.power_rule import power
from lookaround.averaging.rules import Rule, exponential, lawa, snapshot_weights, tail, uniform
from lookaround.averaging.running import RunningAverage
from lookaround.averaging.schedules import CyclicalLR, HighConstantLR, PretrainingLR
from lookaround.averaging.soups import (
    Plan,
    RecipeLine,
    Soup,
    greedy_soup,
    model_stock_files,
    plan_soup,
    soup_files,
    uniform_soup,
)
from lookaround.averaging.swa import FoldedSWA
from lookaround.averaging.swad import SWAD
from lookaround.averaging.switch_ema import SwitchEMA

__all__ = [
    "SWAD",
    "CyclicalLR",
    "FoldedSWA",
    "HighConstantLR",
    "LogitEnsemble",
    "Plan",
    "PretrainingLR",
    "Profile",
    "RecipeLine",
    "Rule",
    "RunningAverage",
    "SnapshotCollector",
    "Soup",
    "SwitchEMA",
    "Synthesis",
    "emulated_decay",
    "exponential",
    "greedy_soup",
    "lawa",
    "model_stock_files",
    "plan_soup",
    "posthoc_weights",
    "power",
    "snapshot_weights",
    "soup_files",
    "synthesize",
    "tail",
    "uniform",
    "uniform_soup",
    "update_norm_stats",
]
