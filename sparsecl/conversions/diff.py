"""diff: in what two checkpoints differ."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecl.conversions.common import CKPT_HELP, open_checkpoint, progress

if TYPE_CHECKING:
    from sparsecl.checkpoint.differences import LiveDifference, TensorDifference
    from sparsecl.checkpoint.reader import Reader

MAX_LINES = 12  # of numbers; a changed reservoir of replay has thousands of entries


def add_parser(subparsers: Any) -> None:
    """The command line of `diff`."""
    parser = subparsers.add_parser(
        "diff",
        help="parameters, live sets, moments, method state: what differs",
        description="Exit code 0 if every state of every parameter, every live set and the "
        "numbers of the methods are equal, 1 if not. The layout does not matter. Differences of "
        "step, config, data and optimizer numbers are shown and do not count.",
    )
    parser.add_argument("a", type=Path, metavar="A", help=CKPT_HELP)
    parser.add_argument("b", type=Path, metavar="B", help="another")
    parser.add_argument(
        "--tolerance",
        type=not_negative,
        default=0.0,
        metavar="X",
        help="elements up to this far apart are equal (default 0)",
    )


def not_negative(text: str) -> float:
    """A finite number >= 0."""
    value = float(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number >= 0, got {text}")
    return value


def run(args: argparse.Namespace) -> int:
    """Compare and print; 0 = equal, 1 = different."""
    from sparsecl.checkpoint.canonical import keys, num_bytes
    from sparsecl.checkpoint.differences import compare_live, compare_tensors, total

    (found_a, a), (found_b, b) = open_checkpoint(args.a), open_checkpoint(args.b)
    print(f"A  {found_a.folder}: step {a.manifest.step}")
    print(f"B  {found_b.folder}: step {b.manifest.step}")
    with progress("diff", num_bytes(a, keys(a))) as advance:
        parts = list(compare_tensors(a, b, tolerance=args.tolerance, advance=advance))
    live = compare_live(a, b)
    states = dict.fromkeys(part.state for part in parts)
    changed = [part for part in parts if not part.equal]
    show("Not counted", shortened(state_lines(a, b, ("methods",), inside=False)))
    method_lines = state_lines(a, b, ("methods",), inside=True)
    show("Method numbers", shortened(method_lines))
    if any(not one.equal for one in live):
        show("Live sets", live_table([one for one in live if not one.equal]))
    if changed:
        show("Tensors", tensor_table(changed))
    show("In all", tensor_table([total(parts, state) for state in states]))
    equal = not changed and not method_lines and all(one.equal for one in live)
    verdict = "equal" if equal else "different"
    print(
        f"\n{verdict}: {len(changed)} of {len(parts)} tensors and "
        f"{sum(not one.equal for one in live)} of {len(live)} live sets differ"
        + (f" by more than {args.tolerance:g}" if args.tolerance else "")
    )
    return 0 if equal else 1


def state_lines(a: "Reader", b: "Reader", names: tuple[str, ...], *, inside: bool) -> list[str]:
    """Leaves of the manifests' state that differ, of the blocks `names` or of all others."""
    from sparsecl.config import differences

    def part(reader: "Reader") -> dict[str, Any]:
        state = {"step": reader.manifest.step, **reader.manifest.state}
        # Live sets are compared as they are in the checkpoint, not as the run began.
        return {k: v for k, v in state.items() if (k in names) == inside and k != "topology"}

    return differences(part(a), part(b))


def tensor_table(parts: "list[TensorDifference]") -> list[str]:
    """One line per tensor, or per state in all."""
    width = max(len(part.name) for part in parts)
    heads = f"{'differing':>12} {'of':>12} {'max |A-B|':>10} {'rel. L2':>9}"
    lines = [f"{'state':<16} {'':<{width}} {heads}"]
    for part in parts:
        start = f"{part.state:<16} {part.name:<{width}} "
        numbers = (
            f"{part.num_differing:>12} {part.numel:>12} {part.max_abs:>10.3g} "
            f"{part.relative_l2:>9.3g}"
        )
        lines.append(start + (part.problem or numbers))
    return lines


def live_table(parts: "list[LiveDifference]") -> list[str]:
    """One line per matrix."""
    width = max(len(part.name) for part in parts)
    lines = [f"{'':<{width}} {'live in A':>10} {'in B':>10} {'only in A':>10} {'only in B':>10}"]
    for part in parts:
        counts = f"{part.only_a:>10} {part.only_b:>10}"
        start = f"{part.name:<{width}} {part.live_a:>10} {part.live_b:>10} "
        lines.append(start + (part.problem or counts))
    return lines


def show(title: str, lines: list[str]) -> None:
    """A titled list; nothing if it is empty."""
    if not lines:
        return
    print(f"\n{title}")
    print("\n".join(f"  {line}" for line in lines))


def shortened(lines: list[str]) -> list[str]:
    """The first lines of a list that may be long."""
    more = len(lines) - MAX_LINES
    return lines if more <= 0 else [*lines[:MAX_LINES], f"... and {more} more"]
