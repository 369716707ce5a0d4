"""Textures of the shapes and backgrounds behind them.

A texture maps pixels (..., 2), in cells of 8x8 pixels from the image's corner, to the share (...) in [0, 1] of the
shape's second colour. It repeats in every cell, like cloth behind a stencil: whatever the shape and its place, each
8x8 patch of a texture is the same, and so is its code in the latents. A mirrored texture is still told from the rest.

A background maps the image's grid (B, H, W, 2), per-image variation `u` (B, 8) in [0, 1] and smooth noise (B, H, W) in
[0, 1] to colours (B, 3, H, W) in [0, 1]. The edges of both are soft over about a pixel, so that nothing aliases.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CELL = 8  # pixels: a cell of the latents

TextureFunction = Callable[[Tensor], Tensor]
BackgroundFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def _soft(x: Tensor, width: float = 0.3) -> Tensor:
    """A soft step at zero, from a wave of about unit slope."""
    return torch.sigmoid(x / width * 2)


def _column(u: Tensor, index: int) -> Tensor:
    return u[:, index, None, None]


def _covered(distance: Tensor) -> Tensor:
    """A pixel's coverage by what it lies `distance` inside of, in cells."""
    return (0.5 + CELL * distance).clamp(0, 1)


def _lines(x: Tensor, width: float) -> Tensor:
    """Lines at the middle of every unit of `x`, `width` of it wide."""
    return _covered(width / 2 - (x % 1 - 0.5).abs())


def plain_texture(p: Tensor) -> Tensor:
    """The middle of both tones, so that no texture is lighter or darker than it by much."""
    return torch.full_like(p[..., 0], 0.5)


def striped(p: Tensor) -> Tensor:
    return _lines(p[..., 1], 0.5)


def barred(p: Tensor) -> Tensor:
    return _lines(p[..., 0], 0.5)


def slanted(p: Tensor) -> Tensor:
    return _lines(p.sum(-1), 0.5)


def checkered(p: Tensor) -> Tensor:
    column, row = _lines(p, 0.5).unbind(-1)
    return column * row + (1 - column) * (1 - row)


def dotted(p: Tensor) -> Tensor:
    return _covered(0.29 - (p % 1 - 0.5).norm(dim=-1))


def netted(p: Tensor) -> Tensor:
    return _lines(p, 0.22).amax(-1)


def zigzag(p: Tensor) -> Tensor:
    return _lines(p[..., 1] - (p[..., 0] % 1 - 0.5).abs(), 0.5)


def wavy(p: Tensor) -> Tensor:
    """As zigzag, but upright."""
    return zigzag(p.flip(-1))


TEXTURES: dict[str | None, TextureFunction] = {
    None: plain_texture,
    **{f.__name__: f for f in [striped, barred, slanted, checkered, dotted, netted, zigzag, wavy]},
}


def _rgb(like: Tensor, red: float, green: float, blue: float) -> Tensor:
    return like.new_tensor([red, green, blue])[None, :, None, None]


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """`share` (B, H, W) of colour `b` over colour `a`."""
    return a + (b - a) * share[:, None]


def plain_background(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    level = 0.62 + 0.2 * _column(u, 0) + 0.0 * noise
    return level[:, None].expand(-1, 3, -1, -1)


def sky(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    blue = _mix(_rgb(grid, 0.25, 0.55, 0.95), _rgb(grid, 0.65, 0.85, 1.0), (grid[..., 1] + 1) / 2)
    return _mix(blue, _rgb(grid, 1, 1, 1), _soft((noise - 0.6) * 5, 0.6))


def sea(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    water = _mix(_rgb(grid, 0.0, 0.5, 0.55), _rgb(grid, 0.0, 0.22, 0.42), (grid[..., 1] + 1) / 2)
    wave = torch.sin(
        9 * math.pi * (grid[..., 1] + _column(u, 0)) + 1.2 * torch.sin(7 * grid[..., 0] + 6 * _column(u, 1))
    )
    return _mix(water, _rgb(grid, 0.55, 0.95, 0.9), 0.8 * _soft(wave - 0.8))


def meadow(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    grass = _mix(_rgb(grid, 0.42, 0.72, 0.2), _rgb(grid, 0.25, 0.55, 0.1), noise)
    cell = grid * 3.2 + 3 * u[:, None, None, :2] + 0.35 * torch.sin(9 * grid.flip(-1))
    blossom = _soft((0.14 - (cell - cell.round()).norm(dim=-1)) * 12)
    return _mix(grass, _rgb(grid, 1.0, 0.95, 0.45), blossom)


def desert(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    dune = torch.sin(
        5 * (grid[..., 1] + 0.35 * torch.sin(2.2 * grid[..., 0] + 6.3 * _column(u, 0)) + 2 * _column(u, 1))
    )
    return _mix(_rgb(grid, 0.96, 0.83, 0.55), _rgb(grid, 0.78, 0.58, 0.3), _soft(dune, 0.8))


def night(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    dark = _mix(_rgb(grid, 0.03, 0.03, 0.12), _rgb(grid, 0.1, 0.07, 0.25), noise)
    cell = grid * 3.1 + 5 * u[:, None, None, :2]
    cell = cell + 0.3 * torch.sin(3.1 * cell.round().flip(-1) + 6 * u[:, None, None, 2:4])
    return _mix(dark, _rgb(grid, 1, 1, 0.85), _soft((0.1 - (cell - cell.round()).norm(dim=-1)) * 14))


def wall(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """Bricks in mortar, every second row shifted by half a brick."""
    y = grid[..., 1] / 0.25 + _column(u, 0)
    x = grid[..., 0] / 0.5 + _column(u, 1) + 0.5 * (y.floor() % 2)
    gap = torch.minimum((y - y.round()).abs() * 0.25, (x - x.round()).abs() * 0.5)
    brick = _mix(_rgb(grid, 0.62, 0.22, 0.14), _rgb(grid, 0.75, 0.35, 0.22), noise)
    return _mix(brick, _rgb(grid, 0.85, 0.8, 0.74), _soft((0.03 - gap) * 20))


def forest(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    trunk = torch.sin(
        13 * grid[..., 0] + 6.3 * _column(u, 0) + 0.8 * torch.sin(1.5 * grid[..., 1] + 6.3 * _column(u, 1))
    )
    green = _mix(_rgb(grid, 0.04, 0.24, 0.12), _rgb(grid, 0.12, 0.4, 0.2), noise)
    return _mix(green, _rgb(grid, 0.28, 0.17, 0.08), _soft(trunk - 0.25))


def sunset(grid: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    height = (grid[..., 1] + 1) / 2
    glow = _mix(_rgb(grid, 0.45, 0.15, 0.5), _rgb(grid, 1.0, 0.5, 0.15), (height * 1.3).clamp(0, 1))
    horizon = _soft((grid[..., 1] - 0.5 - 0.2 * _column(u, 0)) * 12)
    return _mix(glow, _rgb(grid, 0.3, 0.07, 0.2), horizon)


BACKGROUNDS: dict[str | None, BackgroundFunction] = {
    None: plain_background,
    **{f.__name__: f for f in [sky, sea, meadow, desert, night, wall, forest, sunset]},
}
