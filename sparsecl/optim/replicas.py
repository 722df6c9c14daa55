"""Copies that must be equal are equal, bit for bit.

Three pairs can come apart without any law of the topology being broken: a flipped bit of memory in
a live weight changes one rank's model and, silently, everything after it.

1. The weight that the forward pass uses and the fp32 master that it was rounded from.
2. The weights of the ranks that hold the same slice of the model (dp). Under ZeRO-3 each element is
   kept once, so there is nothing to compare; pair 1 covers it.
3. The masks of those ranks.

Differences are found with sums over the bits, one number per tensor and rank; a sum misses a change
only if another undoes it. Nothing is ever repaired: who is right is not known.
"""

from collections import Counter
from collections.abc import Mapping

import torch

from sparsecl import dist
from sparsecl.errors import InvariantError
from sparsecl.optim.slices import Slices

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of the bit patterns of all elements, read as integers; int64, wraps around."""
    flat = tensor.detach().reshape(-1)
    return flat.view(_BITS[flat.element_size()]).sum(dtype=torch.int64)


@torch.no_grad()
def check_replicas(slices: Slices, dead: Mapping[str, torch.Tensor], step: int) -> None:
    """Compare all pairs. Collective over the world.

    Args:
        dead: masks by parameter name, as MaskGuard takes them.
        step: for the message.

    Raises:
        InvariantError: on all ranks, naming ranks and parameters.
    """
    here = _rounding_errors(slices)
    sums = _replicated(slices, dead)
    keys = list(sums)
    here += _odd_ones(keys, [int(sums[key]) for key in keys])
    num_wrong = torch.tensor([len(here)], dtype=torch.int64, device=dist.device())
    if int(dist.all_reduce(num_wrong)) == 0:
        return
    found = [
        f"rank {rank}: {'; '.join(lines)}"
        for rank, lines in enumerate(dist.gather_objects(here))
        if lines
    ]
    raise InvariantError(
        f"step {step}: copies that must be equal differ (memory or a transfer has failed). "
        + " | ".join(found)
        + ". Start again: the run goes on from its last checkpoint."
    )


def _rounding_errors(slices: Slices) -> list[str]:
    """Live or dead, a weight is its master rounded. Local."""
    wrong = []
    for item in slices:
        weight, master = item.weight, item.master
        if weight.data_ptr() == master.data_ptr():
            continue
        rounded = master.to(device=weight.device, dtype=weight.dtype)
        bits = _BITS[weight.element_size()]
        count = int((weight.view(bits) != rounded.view(bits)).sum())
        if count:
            wrong.append(f"{item.name}: {count} weights are not their masters")
    return wrong


def _replicated(slices: Slices, dead: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bit sums of what every dp rank keeps whole, in the same order on all of them."""
    sums = {f"mask of {name}": bit_sum(mask) for name, mask in sorted(dead.items())}
    if slices.stage < 3:
        params = slices.parameters()
        sums |= {f"weights of {name}": bit_sum(param) for name, param in params.items()}
    return sums


def _odd_ones(keys: list[str], mine: list[int]) -> list[str]:
    """What this rank keeps unlike its dp group. Collective over dp."""
    if dist.dp_size() == 1 or not keys:
        return []
    values = torch.tensor(mine, dtype=torch.int64, device=dist.device())
    low = dist.all_reduce(values.clone(), group=dist.dp_group(), op="min")
    high = dist.all_reduce(values.clone(), group=dist.dp_group(), op="max")
    differing = [key for key, unlike in zip(keys, (low != high).tolist(), strict=True) if unlike]
    own = dict(zip(keys, mine, strict=True))
    # The world, not the group: ranks of groups that agree must take part in the exchange too.
    everyone = dist.gather_objects((dist.tp_rank(), {key: own[key] for key in differing}))
    lines = []
    for key in differing:
        counts = Counter(sums[key] for place, sums in everyone if place == dist.tp_rank())
        usual, times = counts.most_common(1)[0]
        if own[key] != usual or times == 1 or 2 * times == counts.total():
            lines.append(f"{key} are unlike those of the other ranks")
    return lines
