"""How often a text is read: trained tokens over the tokens that there are.

Muennighoff et al. 2023 (https://arxiv.org/abs/2305.16264): up to 4 epochs of repeated text are
worth almost as much as new text, later ones less and less.
"""

from collections.abc import Mapping, Sequence

MANY = 4.0
"""Passes above which repeating is said to cost."""


def passes(
    by_phase: Sequence[Mapping[str, int]], train_tokens: Mapping[str, int]
) -> dict[str, float]:
    """Domain -> passes over its training text in all phases; without domains of unknown size.

    Args:
        by_phase: for each phase, domain -> tokens read; replayed ones are read too.
        train_tokens: domain -> tokens of its training text.
    """
    total = total_tokens(by_phase)
    return {name: total.get(name, 0) / size for name, size in train_tokens.items() if size > 0}


def total_tokens(by_phase: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Domain -> tokens read in all phases."""
    total: dict[str, int] = {}
    for phase in by_phase:
        for name, tokens in phase.items():
            total[name] = total.get(name, 0) + tokens
    return total


def pass_warnings(
    planned: Sequence[Mapping[str, int]], train_tokens: Mapping[str, int]
) -> list[str]:
    """One line for each domain that is to be read more than MANY times."""
    tokens = total_tokens(planned)
    return [
        f"domain {name}: {tokens[name]:,} planned tokens are {number:.1f} passes over the "
        f"{train_tokens[name]:,} that it has. Beyond {MANY:g} passes a repeated text teaches less "
        "and less (arxiv.org/abs/2305.16264): give more text, or lower phases.tokens or steps."
        for name, number in passes(planned, train_tokens).items()
        if number > MANY
    ]


def passes_text(found: Mapping[str, float]) -> str:
    """ "code 0.11, legal 16.0"."""
    return ", ".join(f"{name} {number_text(number)}" for name, number in found.items())


def number_text(number: float) -> str:
    """Two digits below 10, one above."""
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
