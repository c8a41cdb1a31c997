"""Planes and lines in weight space: where a point of the picture lies among the weights, and the other way round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import torch
from torch import Tensor, nn

from lookaround.landscape.weights import Weights, flatten

# Elements that are widened to float64 at a time when vectors are measured.
_CHUNK = 2**20
# The least angle, in radians, between two directions that span a plane: below it float32 weights are rounding noise.
_LEAST_ANGLE = 1e-5


@dataclass(frozen=True, eq=False)
class Geometry(ABC):
    """A part of weight space that is spanned by a few weight vectors, its rows.

    A point is a mixture ``weights(…) @ rows``, one pass over the rows whatever its coordinates: no rounding builds up
    from point to point, and a mixture such as (0, 1, 0) is a row itself, bit for bit.

    Attributes:
        rows: ``(m, n)``, the weight vectors that are mixed.
        axes: what the coordinates are called on a figure.

    Source: ours; lines, planes and random planes name theirs.
    """

    rows: Tensor
    axes: tuple[str, ...]

    @abstractmethod
    def weights(self, *coordinates: float) -> list[float]:
        """The weight of each row in the point with these coordinates."""

    def point(self, *coordinates: float) -> Tensor:
        """The weight vector, of shape ``(n,)``, at these coordinates.

        Raises:
            ValueError: there are more or fewer coordinates than axes.
        """
        if len(coordinates) != len(self.axes):
            raise ValueError(f"a point has {len(self.axes)} coordinates here, got {len(coordinates)}")
        mixture = torch.tensor(self.weights(*coordinates), dtype=self.rows.dtype, device=self.rows.device)
        return mixture @ self.rows


@dataclass(frozen=True, eq=False)
class _Frame:
    """Gram–Schmidt on the two directions from row 0 to rows 1 and 2: u = w₁ - w₀, v = (w₂ - w₀) - shear · u."""

    uu: float
    vv: float
    shear: float

    @property
    def width(self) -> float:
        return sqrt(self.uu)

    @property
    def height(self) -> float:
        return sqrt(self.vv)

    @classmethod
    def of(cls, rows: Tensor) -> _Frame:
        uu = _sum(rows, lambda o, a, b: (a - o).square())
        rr = _sum(rows, lambda o, a, b: (b - o).square())
        if not isfinite(uu) or not isfinite(rr):
            raise ValueError(
                "weights that are NaN or infinite, or too far apart for float64, span no plane; give finite ones"
            )
        if uu == 0:
            raise ValueError("the first two weight vectors are equal and span no line; give different ones")
        shear = _sum(rows, lambda o, a, b: (a - o) * (b - o)) / uu
        vv = _sum(rows, lambda o, a, b: ((b - o) - shear * (a - o)).square())
        if vv <= _LEAST_ANGLE**2 * rr:
            raise ValueError("the three weight vectors lie on one line and span no plane; give a third one beside it")
        return cls(uu, vv, shear)

    def project(self, rows: Tensor, point: Weights) -> tuple[float, float, float]:
        """(s, t, distance): the point's place in multiples of u and v, and how far it is off the plane.

        Numerators and denominators of a row's own place are the same sums, so that it is exact.
        """
        four = (*rows, _like(point, rows, "plane"))
        s = _sum(four, lambda o, a, b, p: (a - o) * (p - o)) / self.uu
        t = _sum(four, lambda o, a, b, p: ((b - o) - self.shear * (a - o)) * ((p - o) - s * (a - o))) / self.vv
        off = _sum(four, lambda o, a, b, p: (((p - o) - s * (a - o)) - t * ((b - o) - self.shear * (a - o))).square())
        return s, t, sqrt(off)


@dataclass(frozen=True, eq=False)
class Plane(Geometry):
    """The plane through three weight vectors, with orthonormal coordinates whose origin is the first of them.

    Distances on the figure are Euclidean distances between weights. Build one with :meth:`through`.

    Attributes:
        anchors: coordinates (x, y) of the three vectors: (0, 0), (‖u‖, 0) and (⟨w₃ - w₁, û⟩, ‖v‖).

    Source: Garipov et al. 2018, "Loss surfaces, mode connectivity", appendix; Zhang et al. 2023 (Lookaround),
    appendix A.
    """

    anchors: tuple[tuple[float, float], ...]
    frame: _Frame

    @classmethod
    def through(cls, first: Weights, second: Weights, third: Weights) -> Plane:
        """The plane P(x, y) = w₁ + x û + y v̂, where û and v̂ come from w₂ - w₁ and w₃ - w₁ by Gram–Schmidt.

        Args:
            first: a model, a list of tensors or a vector; the origin.
            second: the x axis points from the origin to it.
            third: has y > 0.

        Raises:
            ValueError: the vectors differ in length, lie on one line, or are not finite.

        Example:
            >>> import torch
            >>> from lookaround.landscape import Plane
            >>> plane = Plane.through(torch.zeros(3), torch.tensor([2.0, 0, 0]), torch.tensor([1.0, 3, 0]))
            >>> plane.anchors
            ((0.0, 0.0), (2.0, 0.0), (1.0, 3.0))
            >>> plane.point(1.0, 3.0)
            tensor([1., 3., 0.])
            >>> plane.project(torch.tensor([5.0, 6.0, 4.0]))
            (5.0, 6.0, 4.0)

        Source: Zhang et al. 2023 (Lookaround), appendix A, after Garipov et al. 2018.
        """
        rows = _stack(first, second, third)
        frame = _Frame.of(rows)
        return cls(rows, ("x", "y"), ((0.0, 0.0), (frame.width, 0.0), (frame.shear * frame.width, frame.height)), frame)

    def weights(self, *coordinates: float) -> list[float]:
        x, y = coordinates
        t = y / self.frame.height
        s = (x - t * self.anchors[2][0]) / self.frame.width
        return [1 - s - t, s, t]

    def project(self, point: Weights) -> tuple[float, float, float]:
        """(x, y, distance): the nearest point of the plane, and how far from it ``point`` is.

        The anchors have exactly the coordinates in ``anchors`` and distance 0. Sums are formed in float64.

        Raises:
            ValueError: ``point`` has another number of weights.
        """
        s, t, off = self.frame.project(self.rows, point)
        return s * self.frame.width, t * self.frame.height, off


@dataclass(frozen=True, eq=False)
class RandomPlane(Geometry):
    """The plane w + x d₁ + y d₂ along two filter-normalized random directions. Build one with :meth:`around`.

    Source: Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4.
    """

    frame: _Frame

    @classmethod
    def around(cls, model: nn.Module, seed: int) -> RandomPlane:
        """A plane around a model's weights, along directions scaled like the weights themselves.

        Each direction is Gaussian; each of its filters (the part that makes one output channel or unit) is scaled to
        the norm of the same filter of the weights, so that x = 1 perturbs every filter by its own size and the
        picture does not depend on how the network's scale is spread over its layers. Biases and norm layers'
        parameters, all parameters of one dimension, stay as they are. Drawn on the CPU, so equal on every device.

        Args:
            model: the centre of the plane.
            seed: of both directions.

        Example:
            >>> from torch import nn
            >>> from lookaround.landscape import RandomPlane
            >>> plane = RandomPlane.around(nn.Linear(4, 2), seed=0)
            >>> plane.rows.shape
            torch.Size([3, 10])

        Source: Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4.
        """
        generator = torch.Generator().manual_seed(seed)
        first, second = (filter_normalized(model, generator) for _ in range(2))
        centre = flatten(model)
        rows = torch.stack([centre, first, second])
        return cls(rows, ("first direction", "second direction"), _Frame.of(rows + _below_first(centre)))

    def weights(self, *coordinates: float) -> list[float]:
        x, y = coordinates
        return [1.0, x, y]

    def project(self, point: Weights) -> tuple[float, float, float]:
        """(x, y, distance): the nearest point of the plane in multiples of the directions, and how far ``point`` is."""
        s, t, off = self.frame.project(self.rows + _below_first(self.rows[0]), point)
        return s - t * self.frame.shear, t, off


@dataclass(frozen=True, eq=False)
class Line(Geometry):
    """The line (1 - t) a + t b: a at t = 0, b at t = 1, and beyond them. Build one with :meth:`between`.

    Attributes:
        length: Euclidean distance from a to b.

    Source: Goodfellow et al. 2015, "Qualitatively characterizing neural network optimization problems".
    """

    length: float

    @classmethod
    def between(cls, first: Weights, second: Weights) -> Line:
        """The line from one weight vector to another.

        Raises:
            ValueError: the vectors differ in length, are equal, or not finite.

        Example:
            >>> import torch
            >>> from lookaround.landscape import Line
            >>> line = Line.between(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]))
            >>> line.length, line.point(2.0)
            (5.0, tensor([6., 8.]))
        """
        rows = _stack(first, second)
        squared = _sum(rows, lambda a, b: (b - a).square())
        if not isfinite(squared):
            raise ValueError(
                "weights that are NaN or infinite, or too far apart for float64, span no line; give finite ones"
            )
        if squared == 0:
            raise ValueError("the two weight vectors are equal and span no line; give different ones")
        return cls(rows, ("position on the line",), sqrt(squared))

    def weights(self, *coordinates: float) -> list[float]:
        (t,) = coordinates
        return [1 - t, t]

    def project(self, point: Weights) -> tuple[float, float]:
        """(t, distance): the nearest point of the line, and how far from it ``point`` is.

        Raises:
            ValueError: ``point`` has another number of weights.
        """
        three = (*self.rows, _like(point, self.rows, "line"))
        t = _sum(three, lambda a, b, p: (b - a) * (p - a)) / _sum(self.rows, lambda a, b: (b - a).square())
        return t, sqrt(_sum(three, lambda a, b, p: ((p - a) - t * (b - a)).square()))


def filter_normalized(model: nn.Module, generator: torch.Generator) -> Tensor:
    """A Gaussian direction whose filters have the norms of the model's filters; zero for parameters of one dimension."""
    parts = []
    for parameter in model.parameters():
        weight = flatten([parameter]).view(parameter.shape)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(weight)
        if parameter.ndim <= 1:
            parts.append(torch.zeros_like(weight).flatten())
            continue
        norms = [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (weight, direction)]
        scale = norms[0] / norms[1].clamp(min=torch.finfo(weight.dtype).tiny)
        parts.append((direction.flatten(1) * scale[:, None]).flatten())
    return torch.cat(parts)


def _stack(*weights: Weights) -> Tensor:
    vectors = [flatten(w) for w in weights]
    sizes = [v.numel() for v in vectors]
    if len(set(sizes)) > 1:
        raise ValueError(f"the weight vectors have {sizes} elements; give weights of one network")
    return torch.stack([v.to(vectors[0].device) for v in vectors])


def _like(point: Weights, rows: Tensor, where: str) -> Tensor:
    """``point`` as one vector of as many weights as ``rows``: a shorter one would be broadcast."""
    vector = flatten(point).to(rows.device)
    if vector.shape != rows.shape[1:]:
        raise ValueError(
            f"the point has {vector.numel()} weights, the {where} is of {rows.shape[1]}; give one of its network"
        )
    return vector


def _below_first(centre: Tensor) -> Tensor:
    """What turns directions into the points they lead to: nothing for row 0, the centre for the others."""
    return torch.stack([torch.zeros_like(centre), centre, centre])


def _chunks(vectors: Sequence[Tensor] | Tensor) -> Iterator[list[Tensor]]:
    for parts in zip(*(v.split(_CHUNK) for v in vectors), strict=True):
        yield [part.double() for part in parts]


def _sum(vectors: Sequence[Tensor] | Tensor, term: Callable[..., Tensor]) -> float:
    """The sum over all elements of ``term``, formed in float64."""
    return float(sum(term(*parts).sum() for parts in _chunks(vectors)))
