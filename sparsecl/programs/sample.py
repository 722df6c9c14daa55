"""Text from a run or a checkpoint: what a model writes after a prompt, after each phase if asked.

    python tools/sample.py runs/sparse --prompt "def main" --temperature 0.8 --top_p 0.95
    python tools/sample.py runs/sparse --prompt "def main" --phases --number 3 --json text.json
    deepspeed --num_gpus 2 tools/sample.py runs/sparse --prompt "def main"

Given a run folder its newest valid checkpoint writes, or with --phases each that the run still has
of a phase end. All write after the same prompt and draw with the same random numbers: texts differ
as the models do. Sample k is the same text however many samples are asked for. A text begins as a
new document if there is no prompt, and ends with its document, or after --tokens tokens.
Several processes share each model, tensor parallel, and write the same text up to rounding.

stdout has the texts, each with its prompt, and nothing else; control characters are shown as
U+FFFD. The keys of the file that --json writes:

run, prompt     name of the run; the prompt as given
settings        tokens, temperature, top_k, top_p, seed, number as on the command line
checkpoints     one object for each checkpoint:
  checkpoint, digest      its folder's name; sha256 of its manifest
  step                    optimizer steps of the whole run
  phase, domain           the phase that was trained last, and its domain; null if it has none
  phase_ended             whether that phase was over
  prompt_tokens           what the model has seen of the prompt; end-of-text if there is none
  samples                 one object for each sample:
    tokens                ids that were drawn, with the end-of-text that ended it
    text                  of these tokens, without the prompt
    log_probs             of each token under the model itself (temperature 1, all tokens), in
                          nats: minus its loss
    ended                 the document has ended
"""

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

# None of these imports torch: a mistyped flag costs no seconds.
from sparsecl import command, place
from sparsecl.errors import DataError, MissingInputError, PeerLostError, UserError
from sparsecl.files import sha256_file, write_json
from sparsecl.model.choice import ChoiceConfig
from sparsecl.seeding import stream

if TYPE_CHECKING:
    from sparsecl.checkpoint.find import Found
    from sparsecl.checkpoint.manifest import Manifest
    from sparsecl.data.tokenizer import Tokenizer
    from sparsecl.engine.run_config import RunConfig
    from sparsecl.engine.schedule import Schedule

# What a terminal would take for a command; tab and newline are text.
_SHOWN = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint whose digests were checked, and where in its run it is."""

    folder: Path
    config: "RunConfig"
    state: Mapping[str, Any]
    """Of its manifest."""

    step: int
    phase: int | None
    """Trained last; None for weights that no run of ours has trained."""

    domain: str | None
    ended: bool
    """That phase is over."""

    @property
    def title(self) -> str:
        """For people."""
        name = self.folder.resolve().name
        if self.phase is None:
            return name
        when = "after" if self.ended else "in"
        return f"{when} phase {self.phase}, {self.domain} ({name})"


@dataclass(frozen=True)
class Sample:
    """One text; see the module for the keys."""

    tokens: tuple[int, ...]
    text: str
    log_probs: tuple[float, ...]
    ended: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, sample, print. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    return command.report(place.check) or command.report(lambda: work(options), speaks=_speaks)


def work(options: argparse.Namespace) -> None:
    """Check, find, write. Collective over the world: all processes share each model."""
    choice = choice_of(options)
    check_prompt(options.prompt)
    quiet()
    # torch comes in here.
    from sparsecl import dist

    num_ranks = place.world_size()
    if num_ranks > 1:
        asked = {name: str(value) for name, value in vars(options).items() if name != "local_rank"}
        dist.init(tensor=num_ranks, started_as=asked)
    try:
        snapshots: list[Snapshot] = dist.agree(lambda: find(options), only_first=True)
        prompts = dist.agree(lambda: read_prompts(snapshots, options))
        blocks = []
        for snapshot, prompt in zip(snapshots, prompts, strict=True):
            if options.phases and place.rank() == 0:
                print(("\n" if blocks else "") + f"==== {snapshot.title} ====\n", flush=True)
            blocks.append(sample_block(snapshot, prompt, options, choice))
    except Exception as error:
        if not dist.is_lost_peer(error):
            raise
        raise PeerLostError(f"rank {place.rank()}: another rank is gone") from None
    if options.json and place.rank() == 0:
        write_out(options, snapshots[0].config.name, choice, blocks)
    dist.shutdown()


# ---- what is asked for -------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = ChoiceConfig()
    result = command.Parser(description=__doc__)
    result.add_argument("path", type=Path, metavar="RUN", help="run folder or checkpoint folder")
    result.add_argument("--prompt", default="", help="text to go on from; none = a new document")
    result.add_argument("--tokens", type=int, default=64, help="how long a text may get")
    result.add_argument(
        "--temperature",
        type=float,
        default=defaults.temperature,
        help="logits are divided by it; 0 = always the most likely token",
    )
    result.add_argument(
        "--top_k", type=int, default=defaults.top_k, help="only the k most likely tokens"
    )
    result.add_argument(
        "--top_p",
        type=float,
        default=defaults.top_p,
        help="only the fewest most likely tokens with this probability together",
    )
    result.add_argument("--seed", type=int, default=0, help="of the random numbers")
    result.add_argument("--number", type=int, default=1, help="samples")
    result.add_argument(
        "--phases", action="store_true", help="of every phase whose last checkpoint is there"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write tokens and log-probs too")
    result.add_argument(
        "--cache", type=Path, metavar="DIR", help="data cache, if it is not where the config says"
    )
    result.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE.model|FOLDER",
        help="SentencePiece model, or folder with the tokenizer.json, of the run",
    )
    result.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the launcher
    return result


def choice_of(options: argparse.Namespace) -> ChoiceConfig:
    """The flags, checked."""
    for name in ("tokens", "number"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be >= 1, got {getattr(options, name)}")
    try:
        return ChoiceConfig(
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
        )
    except ValueError as error:
        raise UserError(f"--{error}") from None


def check_prompt(prompt: str) -> None:
    """Raise UserError for what is no text: bytes that are no UTF-8 arrive as lone surrogates."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"--prompt: character {error.start} is no Unicode text, so it cannot be encoded; give "
            "UTF-8"
        ) from None


# ---- which checkpoints -------------------------------------------------------------------------


def find(options: argparse.Namespace) -> list[Snapshot]:
    """The checkpoints to sample from, in the order of training. Says on stderr which they are.

    Raises:
        MissingInputError: there is none.
        DataError: the one that was named, or every one of the run, is damaged.
    """
    from sparsecl.checkpoint.find import find_checkpoint, is_checkpoint
    from sparsecl.checkpoint.manifest import read_manifest

    if not options.phases:
        found = find_checkpoint(options.path)
        for note in found.notes:
            say(note)
        snapshot = snapshot_of(found, read_manifest(found.folder))
        if snapshot.phase is not None:
            say(snapshot.title)
        return [snapshot]
    if is_checkpoint(options.path):
        raise UserError(f"--phases wants the folder of a run, {options.path} is one checkpoint")
    return phase_ends(options.path)


def phase_ends(run: Path) -> list[Snapshot]:
    """The whole checkpoints of a run that are of the end of a phase, in order."""
    from sparsecl.checkpoint.find import Found, all_checkpoints, run_above
    from sparsecl.checkpoint.manifest import NewerFormatError, read_manifest, verify

    found: dict[int | None, Snapshot] = {}
    last: Snapshot | None = None
    problem: DataError | None = None
    for folder in all_checkpoints(run):
        try:
            snapshot = snapshot_of(Found(folder, run_above(folder), ()), read_manifest(folder))
            if snapshot.ended:
                verify(folder)
                found[snapshot.phase] = snapshot
            last = snapshot
        except NewerFormatError:
            raise
        except DataError as error:
            problem = error
            say(f"passed over: {error}")
    if last is None and problem is not None:
        raise DataError(f"{run}: no checkpoint is valid; {problem}")
    if last is not None:
        say_what_is_missing(last, found)
    if not found:
        raise MissingInputError(f"{run}: has no checkpoint of the end of a phase")
    return list(found.values())


def snapshot_of(found: "Found", manifest: "Manifest") -> Snapshot:
    """Where in its run a checkpoint is."""
    from sparsecl.conversions.hf_export import config_of

    config = config_of(found, manifest.state)
    position = manifest.state.get("position")
    phase, ended, domain = None, False, None
    if isinstance(position, dict):
        # Position names the next step to take; between two phases that is the first of the later.
        following, step = position.get("phase"), position.get("phase_step")
        schedule = schedule_of(config)
        if type(following) is not int or not 0 <= following <= len(schedule.phases):
            raise DataError(
                f"{found.folder}: state.position.phase: {following!r}, the run has "
                f"{len(schedule.phases)} phases"
            )
        ended = step == 0 and following > 0
        phase = following - ended
        if phase == len(schedule.phases):
            raise DataError(f"{found.folder}: state.position.phase_step: {step!r} behind the end")
        domain = schedule.domain_name(schedule.phases[phase])
    return Snapshot(found.folder, config, manifest.state, manifest.step, phase, domain, ended)


def schedule_of(config: "RunConfig") -> "Schedule":
    """The phases of a run; they are the same for any number of ranks."""
    from sparsecl.engine.schedule import make_schedule

    return make_schedule(config, world_size=config.parallel.tensor)


def say_what_is_missing(last: Snapshot, found: Mapping[int | None, Snapshot]) -> None:
    """Name the finished phases without a checkpoint, and what would have kept them."""
    if last.phase is None:
        return
    schedule, settings = schedule_of(last.config), last.config.checkpoint
    num_ended = last.phase + last.ended
    missing = [phase for phase in schedule.phases[:num_ended] if phase.index not in found]
    if not missing:
        return
    names = ", ".join(f"{phase.index} ({schedule.domain_name(phase)})" for phase in missing)
    inside = schedule.num_steps // settings.every if settings.every else 0
    say(
        f"no checkpoint of the end of phase {names}: a run keeps the last {settings.keep}. "
        f"With checkpoint.keep={len(schedule.phases) + inside} all of this one would be there."
    )


# ---- the prompt --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """What a text goes on from."""

    tokenizer: "Tokenizer"
    tokens: list[int]


def read_prompts(snapshots: Sequence[Snapshot], options: argparse.Namespace) -> list[Prompt]:
    """The prompt for each checkpoint, before anything is loaded or printed.

    Raises:
        UserError: a tokenizer is missing or cannot say it, or the model cannot be split.
    """
    from sparsecl import dist
    from sparsecl.model.config import check_tensor_parallel

    found: list[Prompt] = []
    for snapshot in snapshots:
        shape = snapshot.config.model.resolved()
        check_tensor_parallel(shape, dist.tp_size())
        digest = snapshot.state.get("tokenizer")
        if found and found[-1].tokenizer.digest == digest:  # as good as always in one run
            found.append(found[-1])
            continue
        tokenizer = open_tokenizer(snapshot, options)
        found.append(Prompt(tokenizer, prompt_tokens(options.prompt, tokenizer, shape.context)))
    return found


def open_tokenizer(snapshot: Snapshot, options: argparse.Namespace) -> "Tokenizer":
    """The tokenizer of a checkpoint.

    Raises:
        MissingInputError: it cannot be found, or there is none.
        UserError: --tokenizer is another one.
    """
    from sparsecl.conversions.hf_export import tokenizer_of

    found = tokenizer_of(options, snapshot.config, snapshot.state)
    if found is None:
        raise MissingInputError(
            f"{snapshot.folder}: was made from weights without a tokenizer; give it by "
            "--tokenizer FILE"
        )
    return found


def prompt_tokens(prompt: str, tokenizer: "Tokenizer", context: int) -> list[int]:
    """What the model sees first: the end of the prompt, or the end of the document before.

    Raises:
        UserError: the tokenizer cannot say the prompt.
    """
    if not prompt:
        return [tokenizer.eot_id]
    ids = tokenizer.encode(prompt)
    if tokenizer.decode(ids) != prompt:
        raise UserError("--prompt: the run's tokenizer changes this text, so it cannot be encoded")
    longest = max(context - 1, 1)
    if len(ids) > longest and place.rank() == 0:
        say(
            f"--prompt has {len(ids)} tokens and the model a context of {context}: it sees the "
            f"last {longest}"
        )
    return [int(token) for token in ids[-longest:]]


# ---- what they write ---------------------------------------------------------------------------


def sample_block(
    snapshot: Snapshot, prompt: "Prompt", options: argparse.Namespace, choice: ChoiceConfig
) -> dict[str, Any]:
    """Load a checkpoint, let it write, and print each text when it is done. Collective over the
    world.

    Returns:
        An object of `checkpoints` of the JSON, with its samples as `Sample`.
    """
    from sparsecl import dist
    from sparsecl.analysis.load import load_model
    from sparsecl.checkpoint.manifest import MANIFEST
    from sparsecl.model.generate import generate

    config = snapshot.config
    tokenizer = prompt.tokenizer
    model = dist.agree(
        lambda: load_model(
            snapshot.folder,
            config.model,
            config.topology,
            vocab_size=tokenizer.vocab_size,
            seed=config.seed,
            shape=config.shape,
        )
    ).eval()
    samples = []
    for index in range(options.number):
        # A stream for each sample, whatever the checkpoint, and a number of it for each token.
        uniform = stream(options.seed, "sample", index).random(options.tokens)
        found = generate(model, prompt.tokens, uniform, choice, end=tokenizer.eot_id)
        text = tokenizer.decode(np.array(found.tokens))
        ended = found.tokens[-1] == tokenizer.eot_id
        samples.append(Sample(found.tokens, text, found.log_probs, ended))
        if place.rank() == 0:
            show(samples[-1], index + 1, options)
    return {
        "checkpoint": snapshot.folder.resolve().name,
        "digest": sha256_file(snapshot.folder / MANIFEST),
        "step": snapshot.step,
        "phase": snapshot.phase,
        "domain": snapshot.domain,
        "phase_ended": snapshot.ended,
        "prompt_tokens": prompt.tokens,
        "samples": samples,
    }


# ---- what is said ------------------------------------------------------------------------------


def show(sample: Sample, number: int, options: argparse.Namespace) -> None:
    """Print one text, with a heading where there are several."""
    if options.number > 1:
        print(("" if number == 1 else "\n") + f"---- sample {number} ----")
    print((options.prompt + sample.text).translate(_SHOWN), flush=True)


def write_out(
    options: argparse.Namespace, run: str, choice: ChoiceConfig, blocks: Sequence[dict[str, Any]]
) -> None:
    """The file of --json."""
    settings = {
        "tokens": options.tokens,
        **asdict(choice),
        "seed": options.seed,
        "number": options.number,
    }
    made = [{**block, "samples": [asdict(one) for one in block["samples"]]} for block in blocks]
    value = {"run": run, "prompt": options.prompt, "settings": settings, "checkpoints": made}
    write_json(options.json, value)
    say(f"wrote {options.json}")


def say(text: str) -> None:
    """A line beside the texts."""
    print(text, file=sys.stderr, flush=True)


def _speaks(error: BaseException) -> bool:
    """True if this rank has to say an error: rank 0, or one that nobody else has heard of."""
    return place.rank() == 0 or isinstance(error, PeerLostError)


def quiet() -> None:
    """Silence what libraries say about hardware that is not there. Before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    warnings.filterwarnings("ignore", category=FutureWarning)


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
