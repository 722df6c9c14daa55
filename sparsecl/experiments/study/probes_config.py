"""The key `probes` of a study; what becomes of it is in probes.py."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from sparsecl.bounds import check_bounds


@dataclass(frozen=True, kw_only=True)
class ProbesConfig:
    """What every arm still learns of a domain that it has never seen, after some of its phases."""

    domain: str
    """It is scored and never trained in the stream: phases.order must leave it out."""

    after: tuple[int, ...]
    """Phases of the stream that are trained before; a probe of a fresh model, 0, is always run."""

    length: Annotated[int, Ge(1)] = 1
    """Of a probe, as a multiple of a phase of the stream."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if len(set(self.after)) < len(self.after) or min(self.after, default=-1) < 0:
            raise ValueError(
                f"after must be distinct counts of phases >= 0, got {list(self.after)}"
            )
        if not any(self.after):
            raise ValueError("after needs a count of phases >= 1: 0, a fresh model, is always run")
