"""Training images that are mirrored, shifted and turned. B = images.

As in the class-incremental CIFAR-100 of Dohare et al. 2024: mirrored, cropped out of the reflected
image, then turned by 0 to `rotation` degrees, with zeros where nothing is. Own reading: bilinear.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsecl.streams.increments.config import IncrementsConfig


def augment(x: Tensor, config: IncrementsConfig, rng: np.random.Generator) -> Tensor:
    """[B, channels, side, side], with draws of its own for each image."""
    num, device = len(x), x.device
    if config.flip:
        mirrored = torch.from_numpy(rng.random(num) < 0.5).to(device)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    if config.crop:
        at = rng.integers(0, 2 * config.crop + 1, (2, num))
        x = shifted(x, torch.from_numpy(at).to(device), config.crop)
    if config.rotation:
        x = turned(x, torch.from_numpy(rng.uniform(0.0, config.rotation, num)).to(x))
    return x


def shifted(x: Tensor, at: Tensor, pad: int) -> Tensor:
    """Cut-outs of images that are padded with their own reflection.

    Args:
        at: int64 [2, B], row and column of the upper left corner in the padded image; `pad` twice
            is the image itself.
    """
    side = x.shape[-1]
    wide = functional.pad(x, (pad,) * 4, mode="reflect")
    step = torch.arange(side, device=x.device)
    rows, columns = at[0][:, None] + step, at[1][:, None] + step
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return wide.movedim(1, -1)[images, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def turned(x: Tensor, degrees: Tensor) -> Tensor:
    """Each image turned counterclockwise about its middle, [B] degrees."""
    angle = degrees * (math.pi / 180.0)
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)
