"""Signed distance fields of the shapes, batched over images.

Every function takes points `p` of shape (B, H, W, 2) in the shape's own frame, where it about fills [-1, 1]^2 with y
pointing down, and `v`, per-image variation (B, 2) in [-1, 1], and returns signed distances
(B, H, W), negative inside.
The primitives are the exact fields of https://iquilezles.org/articles/distfunctions2d/, written for batches.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

ShapeFunction = Callable[[Tensor, Tensor], Tensor]


def polygon(p: Tensor, vertices: Tensor) -> Tensor:
    """Distance to a closed polygon with `vertices` (B, N, 2) or (N, 2), by even-odd winding."""
    a = vertices.expand(p.shape[0], -1, 2)[:, :, None, None, :]
    b = a.roll(-1, dims=1)
    to_point, edge = p[:, None] - a, b - a
    along = ((to_point * edge).sum(-1) / (edge * edge).sum(-1)).clamp(0, 1)
    distance = (to_point - edge * along[..., None]).norm(dim=-1).amin(1)
    above_a, above_b = p[:, None, ..., 1] >= a[..., 1], p[:, None, ..., 1] >= b[..., 1]
    left = edge[..., 0] * to_point[..., 1] - edge[..., 1] * to_point[..., 0]
    crossings = (above_a & ~above_b & (left < 0)) | (~above_a & above_b & (left > 0))
    inside = crossings.sum(1) % 2 == 1
    return torch.where(inside, -distance, distance)


def circle(p: Tensor, x: float, y: float, radius: Tensor | float) -> Tensor:
    return (p - p.new_tensor([x, y])).norm(dim=-1) - radius


def box(p: Tensor, x: float, y: float, half_width: Tensor | float, half_height: Tensor | float) -> Tensor:
    q = (p - p.new_tensor([x, y])).abs()
    q = torch.stack([q[..., 0] - half_width, q[..., 1] - half_height], -1)
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


def segment(p: Tensor, a: tuple[float, float], b: tuple[float, float], thickness: Tensor | float) -> Tensor:
    """A capsule from `a` to `b`."""
    start = p.new_tensor(a)
    edge = p.new_tensor(b) - start
    along = (((p - start) * edge).sum(-1) / (edge @ edge)).clamp(0, 1)
    return (p - start - along[..., None] * edge).norm(dim=-1) - thickness


def union(*fields: Tensor) -> Tensor:
    return torch.stack(fields).amin(0)


def minus(field: Tensor, cut: Tensor) -> Tensor:
    return torch.maximum(field, -cut)


def _vary(v: Tensor, column: int, middle: float, spread: float) -> Tensor:
    """One proportion per image, (B, 1, 1), in middle +- spread."""
    return (middle + spread * v[:, column])[:, None, None]


def _points(p: Tensor, points: list[tuple[float, float]]) -> Tensor:
    return p.new_tensor(points)


def _radial(radii: Tensor, first_angle: float = -math.pi / 2) -> Tensor:
    """Polygon vertices (B, N, 2) at equal angles and the given radii (B, N)."""
    angles = first_angle + torch.arange(radii.shape[1], device=radii.device) * (2 * math.pi / radii.shape[1])
    return torch.stack([radii * angles.cos(), radii * angles.sin()], -1)


def disc(p: Tensor, v: Tensor) -> Tensor:
    return circle(p, 0, 0, _vary(v, 0, 0.88, 0.06))


def square(p: Tensor, v: Tensor) -> Tensor:
    return box(p, 0, 0, _vary(v, 0, 0.78, 0.06), _vary(v, 1, 0.78, 0.06))


def triangle(p: Tensor, v: Tensor) -> Tensor:
    return polygon(p, _points(p, [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)]))


def star(p: Tensor, v: Tensor) -> Tensor:
    inner = 0.45 + 0.05 * v[:, :1]
    return polygon(p, _radial(torch.cat([torch.ones_like(inner), inner], 1).repeat(1, 5)))


def heart(p: Tensor, v: Tensor) -> Tensor:
    lobes = union(circle(p, -0.44, -0.32, 0.52), circle(p, 0.44, -0.32, 0.52))
    tip = _points(p, [(-0.9, -0.06), (0, -0.4), (0.9, -0.06), (0, 0.95)])
    return union(lobes, polygon(p, tip))


def crescent(p: Tensor, v: Tensor) -> Tensor:
    return minus(circle(p, 0, 0, 0.95), circle(p, 0.56, -0.12, _vary(v, 0, 0.66, 0.04)))


def cross(p: Tensor, v: Tensor) -> Tensor:
    arm = _vary(v, 0, 0.3, 0.04)
    return union(box(p, 0, 0, 0.95, arm), box(p, 0, 0, arm, 0.95))


def ring(p: Tensor, v: Tensor) -> Tensor:
    return circle(p, 0, 0, 0.66).abs() - _vary(v, 0, 0.28, 0.02)


def arrow(p: Tensor, v: Tensor) -> Tensor:
    shaft = box(p, -0.4, 0, 0.6, _vary(v, 0, 0.34, 0.04))
    return union(shaft, polygon(p, _points(p, [(0.0, -0.88), (1.0, 0), (0.0, 0.88)])))


def drop(p: Tensor, v: Tensor) -> Tensor:
    return union(circle(p, 0, 0.35, 0.6), polygon(p, _points(p, [(0, -1.0), (0.53, 0.08), (-0.53, 0.08)])))


def bolt(p: Tensor, v: Tensor) -> Tensor:
    zigzag = [(0.05, -1.0), (-0.75, 0.2), (-0.14, 0.2), (-0.45, 1.0), (0.78, -0.24), (0.16, -0.24), (0.72, -1.0)]
    return polygon(p, _points(p, zigzag))


def flower(p: Tensor, v: Tensor) -> Tensor:
    angles = [2 * math.pi * k / 6 for k in range(6)]
    reach = _vary(v, 0, 0.3, 0.03)
    petals = [circle(p, 0.6 * math.sin(a), -0.6 * math.cos(a), reach) for a in angles]
    return union(circle(p, 0, 0, 0.36), *petals)


def fish(p: Tensor, v: Tensor) -> Tensor:
    body = (p - p.new_tensor([-0.2, 0])) / p.new_tensor([1.0, 0.68])
    body = (body.norm(dim=-1) - 0.74) * 0.68
    tail = _points(p, [(0.3, 0), (0.98, -0.62), (0.82, 0), (0.98, 0.62)])
    return minus(union(body, polygon(p, tail)), circle(p, -0.52, -0.12, 0.1))


def mushroom(p: Tensor, v: Tensor) -> Tensor:
    cap = torch.maximum(circle(p, 0, 0, 0.92), box(p, 0, -0.45, 1.0, 0.5))
    return union(cap, box(p, 0, 0.45, _vary(v, 0, 0.3, 0.05), 0.47))


def house(p: Tensor, v: Tensor) -> Tensor:
    walls = minus(box(p, 0, 0.42, 0.66, 0.5), box(p, 0.0, 0.66, 0.17, 0.3))
    roof = _points(p, [(0, -0.95), (0.98, -0.02), (-0.98, -0.02)])
    return union(walls, polygon(p, roof))


def bowtie(p: Tensor, v: Tensor) -> Tensor:
    wings = polygon(p, _points(p, [(-0.98, -0.65), (0, -0.1), (0.98, -0.65), (0.98, 0.65), (0, 0.1), (-0.98, 0.65)]))
    return union(wings, box(p, 0, 0, 0.17, 0.24))


def longbow(p: Tensor, v: Tensor) -> Tensor:
    limbs = circle(p, -0.72, 0, 1.1).abs() - _vary(v, 0, 0.27, 0.02)
    limbs = torch.maximum(limbs, -(p[..., 0] + 0.35))
    return union(limbs, box(p, -0.42, 0, 0.09, 1.15))


def leaf(p: Tensor, v: Tensor) -> Tensor:
    reach = _vary(v, 0, 1.2, 0.05)
    return torch.maximum(circle(p, -0.7, 0, reach), circle(p, 0.7, 0, reach))


def pill(p: Tensor, v: Tensor) -> Tensor:
    return segment(p, (-0.62, 0), (0.62, 0), _vary(v, 0, 0.36, 0.04))


def key(p: Tensor, v: Tensor) -> Tensor:
    bow = circle(p, -0.55, 0, 0.32).abs() - 0.13
    teeth = union(box(p, 0.55, 0.26, 0.1, 0.26), box(p, 0.86, 0.26, 0.1, 0.26))
    return union(bow, box(p, 0.38, 0, 0.6, 0.13), teeth)


def gear(p: Tensor, v: Tensor) -> Tensor:
    tooth = p.new_tensor([0.95, 0.95, 0.66, 0.66]).repeat(8)
    cogs = polygon(p, _radial(tooth.expand(p.shape[0], -1)))
    return minus(cogs, circle(p, 0, 0, _vary(v, 0, 0.27, 0.03)))


def tree(p: Tensor, v: Tensor) -> Tensor:
    tiers = [
        polygon(p, _points(p, [(0, top), (half, bottom), (-half, bottom)]))
        for top, bottom, half in [(-1.0, -0.3, 0.5), (-0.65, 0.2, 0.68), (-0.2, 0.68, 0.85)]
    ]
    return union(box(p, 0, 0.8, _vary(v, 0, 0.16, 0.03), 0.2), *tiers)


def mug(p: Tensor, v: Tensor) -> Tensor:
    handle = circle(p, 0.5, 0.02, 0.36).abs() - 0.1
    return union(box(p, -0.2, 0, 0.6, 0.8), handle)


def crown(p: Tensor, v: Tensor) -> Tensor:
    spikes = [(-0.95, -0.65), (-0.48, 0.0), (0, -0.8), (0.48, 0.0), (0.95, -0.65), (0.78, 0.75), (-0.78, 0.75)]
    return polygon(p, _points(p, spikes))


def diamond(p: Tensor, v: Tensor) -> Tensor:
    width = 0.66 + 0.06 * v[:, :1]
    return polygon(p, _radial(torch.cat([torch.ones_like(width), width], 1).repeat(1, 2)))


TRAINING_SHAPES: dict[str, ShapeFunction] = {
    **{f.__name__: f for f in [disc, square, triangle, star, heart, crescent, cross, ring, arrow, drop, bolt, flower]},
    **{f.__name__: f for f in [fish, mushroom, house, bowtie, longbow]},
}
NOVEL_SHAPES: dict[str, ShapeFunction] = {f.__name__: f for f in [leaf, pill, key, gear, tree, mug, crown, diamond]}
SHAPES = TRAINING_SHAPES | NOVEL_SHAPES
