"""Which branches a process holds: one dimension of a device mesh, called "branch", is the rows that share the d branches out."""

from dataclasses import dataclass
from itertools import accumulate

from torch.distributed.device_mesh import DeviceMesh

BRANCH = "branch"


@dataclass(frozen=True)
class Placement:
    """d branches on some rows of processes: consecutive ones on each, as evenly as they go, the first rows taking what is over.

    So the rows' branches one after the other are 0, 1, …, d - 1. Where only the first row holds more than one, the running mean over
    rows is the running mean over branches, operation by operation.

    Args:
        branches: d, at least the number of rows: a row without a branch would do nothing.
        rows: the size of the mesh's "branch" dimension.
        row: this process's place along it.

    Raises:
        ValueError: for fewer branches than rows.

    Example:
        >>> from lookaround.distributed import Placement
        >>> [list(Placement(5, 3, row).local) for row in range(3)]
        [[0, 1], [2, 3], [4]]
    """

    branches: int
    rows: int
    row: int

    def __post_init__(self) -> None:
        if self.branches < self.rows:
            raise ValueError(
                f"{self.branches} branches cannot be shared out to the {self.rows} rows of the mesh's {BRANCH!r} dimension: "
                f"ask for at least {self.rows} branches, or put the processes into another dimension (data parallel in a branch)"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """How many branches each row holds."""
        each, over = divmod(self.branches, self.rows)
        return tuple(each + (row < over) for row in range(self.rows))

    @property
    def local(self) -> range:
        """The branches that this process holds."""
        return self.of(self.row)

    def of(self, row: int) -> range:
        """The branches that a row holds."""
        end = [*accumulate(self.counts)][row]
        return range(end - self.counts[row], end)

    def row_of(self, branch: int) -> int:
        """The row that holds a branch.

        >>> from lookaround.distributed import Placement
        >>> Placement(5, 3, 0).row_of(3)
        1
        """
        return next(row for row in range(self.rows) if branch in self.of(row))


def place(mesh: DeviceMesh, branches: int) -> Placement:
    """Where this process stands in a mesh, and which of d branches it holds.

    Args:
        mesh: with a dimension named "branch"; along the others gradients are reduced by DDP or FSDP2, as the user set them up.
        branches: d.

    Raises:
        TypeError: ``mesh`` is no `DeviceMesh`.
        ValueError: it has no dimension "branch", this process is not in it, or there are fewer branches than rows.

    Example:
        >>> from lookaround.distributed import place
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("branch", "dp_shard"))  # doctest: +SKIP
        >>> place(mesh, 3).local  # on the first four processes                            # doctest: +SKIP
        range(0, 2)
    """
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh has to be a torch.distributed DeviceMesh, got {mesh!r}: make one with init_device_mesh")
    names = mesh.mesh_dim_names or ()
    if BRANCH not in names:
        raise ValueError(
            f"the mesh has the dimensions {names or 'without names'}, none is called {BRANCH!r}: "
            f'name it, e.g. init_device_mesh(device, (d, n), mesh_dim_names=("{BRANCH}", "dp_shard"))'
        )
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"this process is not part of the mesh {mesh}: build the optimizer on the processes of the mesh"
        )
    return Placement(branches, mesh.size(names.index(BRANCH)), mesh.get_local_rank(BRANCH))
