"""Prepare the data of a run ahead of time, and print what there is of it.

    python launch/prepare_data.py
    python launch/prepare_data.py --config launch/configs/gpt_100m.yaml \\
        launch/configs/domains_hub.yaml --set data.workers=8

A training run prepares whatever is missing by itself; this serves a login node with a network, or
a large corpus. It may be killed and called again: what is finished of each domain (its text, its
tokens) stays. Memory does not grow with the corpus; the disk holds its text and its tokens, about
1.5 times its size, beside what `datasets` downloads. Without a terminal a line every 15 seconds
tells how far it is.

The second table says what keeps validation text out of training, per domain:

    duplicates   documents that were there already, by their words
    left out     training documents that some domain holds out; below, which domain does
    13-grams     runs of 13 words of the validation text (of much of it a sample)
    in training  share of them that training text of any domain has
    documents    validation documents with such a run
"""

import argparse
from typing import NoReturn

from sparsecl import command, config
from sparsecl.checkout import DEMO, config_file
from sparsecl.data.prepare import PreparedData, prepare
from sparsecl.engine.run_config import RunConfig


def main() -> int:
    """Parse, load, prepare, print. Returns the exit code."""
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--config",
        type=config_file,
        nargs="+",
        default=[DEMO],
        metavar="FILE",
        help="run config; of several, later ones are laid over earlier ones; default: the demo's",
    )
    parser.add_overrides()
    parser.add_argument("--verify", action="store_true", help="check the sha256 of token files")
    parser.add_argument(
        "--check_sources",
        action="store_true",
        help="compare the files that the cached text was made of with their sha256 at that time",
    )
    options = parser.parse_args()
    return command.report(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Load, prepare, print."""
    run = config.load(RunConfig, options.config, options.set)
    prepared = prepare(
        run.data,
        run.tokenizer,
        context=run.model.resolved().context,
        seed=run.seed,
        show_progress=True,
        verify=options.verify,
        check_sources=options.check_sources,
    )
    print(table(prepared))
    print(f"\n{leaks_table(prepared)}")


def table(prepared: PreparedData) -> str:
    """One line per domain: documents, MB and tokens of both splits, bytes per token."""
    head = ("domain", "documents", "MB", "train tokens", "validation", "bytes/token")
    lines = ["{:<16}{:>11}{:>9}{:>14}{:>12}{:>13}".format(*head)]
    for domain in prepared.domains:
        train, validation = domain.train, domain.validation
        num_bytes = train.num_bytes + validation.num_bytes
        num_tokens = train.num_tokens + validation.num_tokens
        lines.append(
            f"{domain.name:<16}{train.num_documents + validation.num_documents:>11,}"
            f"{num_bytes / 1e6:>9.2f}{train.num_tokens:>14,}{validation.num_tokens:>12,}"
            f"{num_bytes / num_tokens:>13.2f}"
        )
    vocabulary = prepared.tokenizer
    lines.append(
        f"tokenizer {vocabulary.kind}, {vocabulary.vocab_size} ids, "
        f"{vocabulary.digest[:12]}; data {prepared.fingerprint[:12]}"
    )
    return "\n".join(lines)


def leaks_table(prepared: PreparedData) -> str:
    """One line per domain, as the help of this program explains them, and one for each pair."""
    head = ("domain", "duplicates", "left out", "13-grams", "in training", "documents")
    lines = ["{:<16}{:>11}{:>9}{:>14}{:>12}{:>13}".format(*head)]
    pairs = []
    for domain in prepared.domains:
        dropped, leaks = domain.manifest["text"]["dropped"], domain.manifest["leaks"]
        left_out, overlap = leaks["left_out"], leaks["overlap"]
        share = "-" if domain.overlap is None else f"{domain.overlap:.1%}"
        lines.append(
            f"{domain.name:<16}{dropped['duplicate']:>11,}{left_out['documents']:>9,}"
            f"{overlap['runs']:>14,}{share:>12}{overlap['documents']:>13,}"
        )
        pairs += [
            f"left out of {domain.name}: {count:,} that {other} holds out"
            for other, count in left_out["by"].items()
        ]
    return "\n".join(lines + pairs)


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
