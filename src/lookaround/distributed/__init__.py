"""Branches over processes: the mesh, the reduction, the data, and what happens when a process dies."""

from lookaround.distributed.checkpoints import Checkpoints
from lookaround.distributed.data import BranchBatches, keyed_generator, keyed_seed
from lookaround.distributed.join import join
from lookaround.distributed.placement import Placement, place
from lookaround.distributed.roll_call import LostRankError
from lookaround.distributed.rows import Rows
from lookaround.distributed.runs import load_run, save_run

__all__ = [
    "BranchBatches",
    "Checkpoints",
    "LostRankError",
    "Placement",
    "Rows",
    "join",
    "keyed_generator",
    "keyed_seed",
    "load_run",
    "place",
    "save_run",
]
