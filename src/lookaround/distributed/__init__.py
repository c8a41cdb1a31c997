"""Branches over processes: the mesh, the reduction, the data, and what happens when a process dies, or comes and goes."""

from lookaround.distributed.checkpoints import Checkpoints
from lookaround.distributed.data import BranchBatches, keyed_generator, keyed_seed
from lookaround.distributed.join import join
from lookaround.distributed.join_replicas import join_replicas
from lookaround.distributed.manager import LostReplicasError
from lookaround.distributed.placement import Placement, place
from lookaround.distributed.replicas import Replicas
from lookaround.distributed.roll_call import LostRankError
from lookaround.distributed.rows import Rows
from lookaround.distributed.runs import load_run, save_run

__all__ = [
    "BranchBatches",
    "Checkpoints",
    "LostRankError",
    "LostReplicasError",
    "Placement",
    "Replicas",
    "Rows",
    "join",
    "join_replicas",
    "keyed_generator",
    "keyed_seed",
    "load_run",
    "place",
    "save_run",
]
