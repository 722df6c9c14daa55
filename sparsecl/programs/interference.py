"""How far learning one domain reaches into the others, in the checkpoints of finished runs.

    python tools/interference.py runs/dense runs/sparse
    python tools/interference.py runs/sparse/checkpoints/step_750 --sequences 32 --out far.json
    python tools/interference.py STUDY

Given a run folder its newest checkpoint is measured and RUN/interference.json written; given a
checkpoint folder RUN/interference_step_N.json. Given the folder of a study (it holds plan.json) all
its finished runs are measured whose interference.json is not that of these settings and of their
newest checkpoint. One process, on the GPU if there is one; data comes from the run's cache, and is
prepared where it is not there.

What the words mean, and the keys of the file (log10 where counts overflow; [D, D] over domains):

run, checkpoint, digest, seed   where the numbers are from; digest = sha256 of its manifest
settings        sequences, eps, weights as on the command line
domains         names; num_tokens: predicted tokens of each, from its validation text
density         masked: live share of the masked matrices; model: of all parameters; num_live
structure       of the masks alone, along the feed-forward matrices without residual paths:
  paths_per_weight_log10          mean number of paths through one live weight
  paths_ratio_to_dense_log10      the same over that of the dense chain; rho_power = rho^(K - 1)
                                  is what the ratio would be with equal degrees, num_matrices = K
  share_of_own_paths_log10        mean share of the network's own paths that use one live weight;
                                  share_of_own_paths_dense_log10: of the dense one
  without_path                    share of the live weights on no path
  reach, reach_without_residual   mean share of the residual stream that one unit reaches after
                                  1..L blocks
gradients       of the mean loss; on live weights of the masked matrices unless a name says all
  norm, dot, cosine, cosine_all_parameters
  dot_per_live_weight             dot / num_live
  overlap_top10                   Jaccard index of the tenths with the largest |g|;
                                  overlap_by_chance: of random tenths
update          one step down the gradient of domain j (row) with |dw| = eps |w| on live weights
  loss, loss_change, predicted    of domain i (column): before, after - before, to first order
  kl                              mean KL(before || after) of the next-token distribution of i
single_weight   num_weights random live weights, each raised by one deviation of its matrix: mean
                share of logits, and of hidden units after the last block, that change by > 1e-6
means           over pairs of different domains (_off_diagonal) and equal ones (_diagonal);
                kl_ratio = kl of the others / kl of the domain learned

Losses, changes and KL are in nats per token.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# None of these imports torch: a mistyped flag costs no seconds.
from sparsecl import command
from sparsecl import config as configs
from sparsecl.errors import (
    DataError,
    InvariantError,
    MissingInputError,
    UserError,
)
from sparsecl.experiments.study.study_plan import PLAN, read_plan, run_folder
from sparsecl.files import sha256_file, write_json
from sparsecl.metrics.interference import (
    INTERFERENCE,
    Interference,
    InterferenceSettings,
    read_interference,
    write_interference,
)
from sparsecl.metrics.interference_text import as_text, side_by_side
from sparsecl.metrics.results import has_ended

if TYPE_CHECKING:
    from sparsecl.analysis.load import Located
    from sparsecl.engine.run_config import RunConfig

# What a measurement takes from config.yaml; the data is compared by its digest.
USED = ("seed:", "model.", "tokenizer.", "topology.")


@dataclass(frozen=True)
class Asked:
    """One folder to look at."""

    path: Path
    """A run folder or a checkpoint folder."""

    name: str
    in_study: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    return command.report(lambda: work(options))


def work(options: argparse.Namespace) -> int:
    """Measure what can be measured, print. Returns the code of the first that failed."""
    settings = settings_of(options)
    jobs = list(find_jobs(options.paths))
    found: list[tuple[Asked, Interference]] = []
    failed: list[tuple[Asked, UserError | InvariantError]] = []
    for job in jobs:
        try:
            found.append((job, result_of(job, settings)))
        except (UserError, InvariantError) as error:
            named = len(jobs) == 1 or str(error).startswith(job.name)
            command.complain(str(error) if named else f"{job.name}: {error}")
            failed.append((job, error))
    show(found)
    if options.out and found:
        write_out(options.out, [value for _, value in found])
    if failed and len(jobs) > 1:
        names = ", ".join(job.name for job, _ in failed)
        command.complain(f"{len(failed)} of {len(jobs)} failed: {names}")
    return failed[0][1].exit_code if failed else 0


# ---- what is asked for -----------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = InterferenceSettings()
    result = command.Parser(description=__doc__)
    result.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN", help="run, checkpoint or study folder"
    )
    result.add_argument(
        "--sequences", type=int, default=defaults.sequences, help="held-out sequences per domain"
    )
    result.add_argument(
        "--eps", type=float, default=defaults.eps, help="relative size |dw|/|w| of an update"
    )
    result.add_argument(
        "--weights", type=int, default=defaults.weights, help="single weights that are changed"
    )
    result.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write here too; several: a list"
    )
    return result


def settings_of(options: argparse.Namespace) -> InterferenceSettings:
    """The flags, checked."""
    try:
        return InterferenceSettings(
            sequences=options.sequences, eps=options.eps, weights=options.weights
        )
    except ValueError as error:
        raise UserError(f"--{error}") from None


def find_jobs(paths: Sequence[Path]) -> Iterator[Asked]:
    """Every folder to look at; of a study those of its finished runs."""
    for path in paths:
        if not (path / PLAN).is_file():
            yield Asked(path, str(path), in_study=False)
            continue
        plan = read_plan(path)
        done = [run for run in plan.runs if has_ended(run_folder(path, run))]
        if not done:
            raise MissingInputError(f"{path}: none of its {len(plan.runs)} runs is finished")
        for run in done:
            yield Asked(run_folder(path, run), run.name, in_study=True)


# ---- one run ---------------------------------------------------------------------------------


def result_of(job: Asked, settings: InterferenceSettings) -> Interference:
    """Measure and write; in a study only what is not there yet."""
    if job.in_study:
        kept = up_to_date(job.path, settings)
        if kept is not None:
            print(f"{job.name}: up to date", file=sys.stderr, flush=True)
            return kept
    quiet()
    return measure_run(job, settings)


def up_to_date(run: Path, settings: InterferenceSettings) -> Interference | None:
    """The file of a run folder, if it is of these settings and the newest checkpoint."""
    from sparsecl.checkpoint.manifest import MANIFEST
    from sparsecl.checkpoint.publish import candidates

    try:
        found = read_interference(run)
        newest = candidates(run / "checkpoints")[0]
        digest = sha256_file(newest / MANIFEST)
    except (UserError, OSError, IndexError):
        return None  # whatever is wrong with it, it will be made again
    same = (found.settings, found.checkpoint, found.digest) == (settings, newest.name, digest)
    return found if same else None


def measure_run(job: Asked, settings: InterferenceSettings) -> Interference:
    """Load a checkpoint and its domains, measure, write the file into the run folder.

    Raises:
        UserError: naming the folder, file or key at fault.
        CannotCreateError, StorageError: the file cannot be written.
    """
    # torch comes in here.
    from sparsecl.analysis.load import held_out_rows, load_model, locate, prepare_domains
    from sparsecl.analysis.measure import Origin, measure
    from sparsecl.checkpoint.manifest import MANIFEST
    from sparsecl.engine.run_config import RunConfig

    def say(text: str) -> None:
        print(f"{job.name}: {text}", file=sys.stderr, flush=True)

    place = locate(job.path)
    config = configs.load(RunConfig, place.run / "config.yaml")
    check_config(place, config)
    context = config.model.resolved().context
    say(f"{place.checkpoint.name}: model and data")
    data = prepare_domains(
        place.checkpoint,
        config.data,
        config.tokenizer,
        context=context,
        seed=config.seed,
        show_progress=True,
    )
    model = load_model(
        place.checkpoint,
        config.model,
        config.topology,
        vocab_size=data.tokenizer.vocab_size,
        seed=config.seed,
    )
    rows = held_out_rows(data, context=context, sequences=settings.sequences)
    name = place.checkpoint.resolve().name
    origin = Origin(
        run=config.name,
        checkpoint=name,
        digest=sha256_file(place.checkpoint / MANIFEST),
        seed=config.seed,
    )
    found = measure(model, rows, settings, origin, say)
    target = place.run / (INTERFERENCE if place.newest else f"interference_{name}.json")
    write_interference(target, found)
    say(f"wrote {target}")
    return found


def check_config(place: "Located", config: "RunConfig") -> None:
    """Compare the run's config.yaml with what a checkpoint was made with, as far as it counts here.

    Raises:
        DataError: they differ.
    """
    from sparsecl.checkpoint.manifest import read_manifest
    from sparsecl.engine.resume.changes import changes

    saved = read_manifest(place.checkpoint).state.get("config")
    found = changes(saved, configs.to_dict(config)) if saved else []
    used = [line for line in found if line.startswith(USED)]
    if used:
        raise DataError(
            f"{place.run / 'config.yaml'}: is not the config of {place.checkpoint.name}: "
            f"{'; '.join(used)}. Restore it from a copy."
        )


def quiet() -> None:
    """Silence what libraries say about hardware that is not there. Before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    warnings.filterwarnings("ignore", category=FutureWarning)


def write_out(path: Path, found: Sequence[Interference]) -> None:
    """One object for one checkpoint, a list for several."""
    values = [configs.to_dict(one) for one in found]
    write_json(path, values[0] if len(values) == 1 else values)
    print(f"wrote {path}", file=sys.stderr)


# ---- what is said ----------------------------------------------------------------------------


def show(found: Sequence[tuple[Asked, Interference]]) -> None:
    """The whole report of each run that was named, and a line for each if there are several."""
    parts = [as_text(one) for job, one in found if not job.in_study]
    if len(found) > 1 or any(job.in_study for job, _ in found):
        parts.append(side_by_side([(job.name, one) for job, one in found]))
    if parts:
        print(("\n\n" + "=" * 100 + "\n\n").join(parts))


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
