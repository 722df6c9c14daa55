"""One run from a config to results.json: checks, data, model, resume, training, results.

Order matters: everything that a user can get wrong is checked before the run folder exists.
"""

import contextlib
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sparsecl import config as configs
from sparsecl import dist, meeting
from sparsecl.checkpoint.find import find_checkpoint, is_checkpoint
from sparsecl.checkpoint.manifest import MANIFEST, read_manifest
from sparsecl.checkpoint.publish import candidates, newest_valid
from sparsecl.config_nodes import read_text
from sparsecl.data.held_file import Stamp
from sparsecl.data.hf_tokenizer import hf_vocab_size
from sparsecl.data.known import known_tokens
from sparsecl.data.prepare import PreparedData, find_inputs, prepare
from sparsecl.engine import ledger
from sparsecl.engine.build import Built, build, check_precision
from sparsecl.engine.deepspeed import ds_config
from sparsecl.engine.devices import be_deterministic
from sparsecl.engine.loop.stop import StopRequest
from sparsecl.engine.loop.train import Trainer
from sparsecl.engine.observe import board, display
from sparsecl.engine.position import Position
from sparsecl.engine.reading import planned_tokens, reading_text
from sparsecl.engine.resume import state
from sparsecl.engine.resume.changes import NOTHING, Allowed, check_config, check_identity
from sparsecl.engine.resume.environment import check_environment, versions
from sparsecl.engine.resume.keeper import saved_records
from sparsecl.engine.resume.run_folder import RunFolder
from sparsecl.engine.resume.saved import check_lawful
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.run_start import RunStart
from sparsecl.engine.schedule import Schedule, make_schedule, rank_layout
from sparsecl.engine.speed_config import check_speed
from sparsecl.engine.texts import all_text, evaluation_texts, text_digest
from sparsecl.engine.topology import choose_backends, draw_topologies
from sparsecl.errors import (
    CannotCreateError,
    DataError,
    MissingInputError,
    PeerLostError,
)
from sparsecl.files import json_text, sha256_file, sha256_text, write_json
from sparsecl.log import RunLog, check_prefix
from sparsecl.methods.several import Methods
from sparsecl.methods.table import build_methods
from sparsecl.metrics.passes import pass_warnings
from sparsecl.metrics.records import SCALARS
from sparsecl.metrics.results import RESULTS, read_to_end
from sparsecl.metrics.summary import summarize
from sparsecl.metrics.table import report
from sparsecl.opening import read_plain
from sparsecl.topology.layer import LayerTopology
from sparsecl.topology.report import table
from sparsecl.wandb_run import begin_wandb, check_installed
from sparsecl.watchdog import Watchdog

Resume = Literal["auto", "never", "must"]


@dataclass(frozen=True)
class Prepared:
    """A checked run, before any work."""

    config: RunConfig
    schedule: Schedule
    deepspeed: ds_config.Resolved
    run_dir: Path
    topologies: Mapping[str, LayerTopology]
    """By layer name; empty for a dense model."""

    warnings: tuple[str, ...] = ()
    """Of the environment, one line each."""


def check(config: RunConfig, ds_path: Path, run_dir: Path | None) -> Prepared:
    """All checks that need neither data nor process group; the same result on every rank.

    Raises:
        UserError: one line.
    """
    schedule = make_schedule(config, world_size=dist.world_size())
    resolved = ds_config.resolve(ds_path, run_numbers(config, schedule))
    check_precision(config)
    check_speed(config.speed, stage=resolved.stage)
    check_installed(config.log.wandb)
    warnings = check_environment(resolved, config)
    topologies = draw_topologies(config)
    folder = run_dir or default_run_dir(config, ds_path)
    return Prepared(config, schedule, resolved, folder, topologies, tuple(warnings))


def run_numbers(config: RunConfig, schedule: Schedule) -> ds_config.RunNumbers:
    """The numbers of a run that also stand in a DeepSpeed JSON."""
    beta1, beta2 = config.optimizer.betas
    return ds_config.RunNumbers(
        precision=config.precision,
        sequences=config.batch.sequences,
        micro=schedule.micro,
        dp_size=schedule.dp_size,
        clip=config.optimizer.clip,
        lr=config.optimizer.lr,
        betas=(beta1, beta2),
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        whole_matrices=config.optimizer.kind if config.optimizer.kind == "muon" else None,
    )


def vocabulary(config: RunConfig) -> int:
    """Tokens that the tokenizer will have, or at most has."""
    if config.tokenizer.path is not None:
        return hf_vocab_size(config.tokenizer.path)
    return 257 if config.tokenizer.kind == "bytes" else config.tokenizer.vocab_size


def default_run_dir(config: RunConfig, ds_path: Path) -> Path:
    """runs/<name>-<digest>: another config or another DeepSpeed JSON is another folder."""
    digest = sha256_text(configs.digest(config) + read_text(ds_path))
    return Path("runs") / f"{config.name}-{digest[:8]}"


def dry_run(prepared: Prepared) -> str:
    """The resolved config, parameters, FLOPs and memory per rank, as text.

    Raises:
        UserError: a file that the run would read is not there.
    """
    config, schedule = prepared.config, prepared.schedule
    find_inputs(config.data, config.tokenizer, seed=config.seed)
    if config.init_from is not None and not candidates(prepared.run_dir / "checkpoints"):
        _start_folder(Path(config.init_from))
    vocab = vocabulary(config)
    counts = ledger.count(config, vocab, prepared.topologies)
    layout = rank_layout(config, schedule, prepared.deepspeed, vocab, gpu=_on_gpu())
    sizes = known_tokens(config.data, config.tokenizer, seed=config.seed)
    train_tokens = {name: train for name, (train, _) in sizes.items()}
    warnings = pass_warnings(planned_tokens(config, schedule), train_tokens)
    head = display.header(
        config,
        schedule,
        counts,
        prepared.topologies,
        layout=layout,
        world_size=dist.world_size(),
        data=", ".join(schedule.domains),
        reading=reading_text(config, schedule, train_tokens),
    )
    price = display.costs(config, schedule, counts, prepared.topologies, vocab=vocab, layout=layout)
    graph = [table(prepared.topologies)] if prepared.topologies else []
    place = f"  Run folder: {prepared.run_dir}"
    warned = [f"  warning: {warning}" for warning in warnings]
    return "\n".join([configs.dump(config), head, *warned, *graph, price, place])


def run(
    prepared: Prepared,
    *,
    resume: Resume = "auto",
    allowed: Allowed = NOTHING,
    check_sources: bool = False,
) -> dict[str, Any] | None:
    """Train, or go on training, or show what is finished. Collective over the world.

    Args:
        allowed: what may differ from the run that wrote the checkpoint.
        check_sources: compare the files that the cached text was made of with what they were.

    Returns:
        The summary of results.json on rank 0, None elsewhere.

    Raises:
        UserError: the same on all ranks.
    """
    try:
        return _run(prepared, resume, allowed, check_sources, StopRequest())
    except RuntimeError as error:
        if not dist.is_lost_peer(error):
            raise
        text = str(error).splitlines()[0]
        raise PeerLostError(
            f"rank {dist.rank()} has lost another rank ({text}). What ended that one stands in "
            "its own output."
        ) from error


def _run(
    prepared: Prepared, resume: Resume, allowed: Allowed, check_sources: bool, stop: StopRequest
) -> dict[str, Any] | None:
    config = prepared.config
    if config.speed.deterministic:
        be_deterministic()
    dist.init(
        config.parallel.tensor,
        join_seconds=config.health.join_seconds,
        started_as={
            "config": configs.to_dict(config),
            "ds_config": prepared.deepspeed.config,
            "run_dir": str(prepared.run_dir),
            "resume": resume,
            "allowed": asdict(allowed),
            "versions": versions(),
        },
    )
    folder = _claim(prepared.run_dir, resume)
    try:
        if dist.agree(lambda: folder is not None and _is_finished(folder, config), only_first=True):
            return dist.agree(lambda: _show_finished(folder))
        # Rank 0 first, so that the others (on this machine) find the data ready, however long a
        # large corpus takes. They believe it about the files that it has read; what they find in
        # a cache of their own machine they compare with its sha256 themselves.
        known: frozenset[Stamp] = dist.agree_at_length(
            lambda: _prepare_data(prepared, check_sources=check_sources).stamps
        )
        data: PreparedData = dist.agree(lambda: _prepare_data(prepared, known=known))
        _check_same_text(data)
        trainer = _assemble(prepared, data, folder, resume, allowed, stop)
        with _watched(config.health.hang_seconds):
            trainer.run()
        stop.rest()
        return dist.agree(lambda: _finish(trainer, folder))
    except BaseException:  # whatever it is: no folder stays of a run that has not begun
        if folder is not None:
            folder.discard_if_new()
        raise
    finally:
        if folder is not None:
            folder.close()


def _check_same_text(data: PreparedData) -> None:
    """All ranks must have found the same text, each on its machine. Collective."""
    prints = dist.gather_objects((data.fingerprint, data.tokenizer.digest))
    other = next((rank for rank, found in enumerate(prints) if found != prints[0]), None)
    if other is not None:
        error = DataError(
            f"rank {other} has other text or another tokenizer than rank 0: the files that "
            "data.domains names are not the same on its machine. Make them so, or share one disk."
        )
        error.agreed = True
        raise error


@contextlib.contextmanager
def _watched(seconds: float) -> Iterator[None]:
    """A watchdog over this rank, unless it was turned off."""
    if not seconds:
        yield
        return
    board = meeting.StoreNoticeBoard() if dist.world_size() > 1 else None
    watchdog = Watchdog(seconds, rank=dist.rank(), board=board)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.close()


def _claim(run_dir: Path, resume: Resume) -> RunFolder | None:
    """Lock the run folder on rank 0; all ranks fail if it cannot be had."""
    claimed: list[RunFolder] = []

    def claim() -> None:
        folder = RunFolder(run_dir)
        claimed.append(folder)
        if resume == "never" and folder.has_run():
            folder.close()
            raise CannotCreateError(
                f"--run_dir {run_dir}: holds a run already, and --resume never does not touch it. "
                "Give another folder, or --resume auto."
            )
        if resume == "must" and not candidates(folder.checkpoints):
            folder.discard_if_new()
            folder.close()
            raise MissingInputError(
                f"--resume must: no checkpoint in {folder.checkpoints}. Give the --run_dir of the "
                "run to go on with, or --resume auto."
            )

    dist.agree(claim, only_first=True)
    return claimed[0] if claimed else None


def _on_gpu() -> bool:
    return dist.device().type == "cuda"


def _prepare_data(
    prepared: Prepared, *, known: Collection[Stamp] = (), check_sources: bool = False
) -> PreparedData:
    config = prepared.config
    return prepare(
        config.data,
        config.tokenizer,
        context=prepared.schedule.shape.context,
        seed=config.seed,
        show_progress=dist.rank() == 0,
        known=known,
        check_sources=check_sources,
    )


def _assemble(
    prepared: Prepared,
    data: PreparedData,
    folder: RunFolder | None,
    resume: Resume,
    allowed: Allowed,
    stop: StopRequest,
) -> Trainer:
    """Build everything and put it where the last checkpoint left it."""
    config, schedule = prepared.config, prepared.schedule
    methods = build_methods(config.methods)
    texts = evaluation_texts(config.eval, data.domains, context=schedule.shape.context)
    identity = {
        "config": configs.to_dict(config),
        "data": data.fingerprint,
        "tokenizer": data.tokenizer.digest,
        "topology": {name: found.digest for name, found in prepared.topologies.items()},
        "windows": text_digest(texts),
    }
    found, notes = dist.agree(lambda: _find_checkpoint(folder, resume), only_first=True)
    saved: dict[str, Any] = {}
    changes: list[str] = []
    if found is not None:
        saved = dist.agree(lambda: read_manifest(found).state)
        if saved.get("weights_only"):
            raise DataError(
                f"{found}: holds weights only, no run to go on with. Begin one in another "
                f"--run_dir, with --set {shlex.quote(f'init_from={found}')}."
            )
        if "windows" not in saved and all_text(texts):
            saved["windows"] = identity["windows"]  # earlier versions read all of so short a text
        changes = check_identity(found, saved, identity, allowed)
        notes += changes
    backends, lines = choose_backends(config, schedule, prepared.topologies, saved.get("backends"))
    notes += lines
    identity["backends"] = backends
    built = build(
        config,
        prepared.deepspeed.config,
        vocab_size=data.tokenizer.vocab_size,
        topologies=prepared.topologies,
        backends=backends,
        methods=methods,
        num_phases=len(schedule.phases),
    )
    position, records, observers = None, None, None
    if found is not None:
        anew = allowed.new_optimizer
        dist.agree(lambda: state.restore(found, built, methods, weights_only=anew))
        if config.init_from is not None:  # what is held was loaded then
            built.guard.holds.anchor()
            built.guard.refresh()
        observers = dist.agree(lambda: state.remembered(found))
        position = Position(**saved["position"])
        records = saved_records(saved)
        # A checkpoint with a revived weight ends here, before anything is written.
        built.guard.audit(position.step)
        built.guard.checks = int(saved["audit_checks"])
        notes.append(f"resumed from {found.name}" + (" with a new optimizer" if anew else ""))
    elif config.init_from is not None:
        identity["init_from"] = _begin_from(Path(config.init_from), built, methods)
        notes.append(f"weights of {config.init_from}")
    tokens = position.step * schedule.tokens_per_step if position else 0
    opened: list[RunLog] = []

    def open_log() -> None:
        if folder is not None:
            new = records is None
            wandb = begin_wandb(folder.path, config.log.wandb, identity["config"], new=new)
            log = RunLog(folder.path, resume_at=records, purge_tokens=tokens, wandb=wandb)
            folder.describe(configs.dump(config), prepared.deepspeed.config)
            opened.append(log)
            warnings = (*prepared.deepspeed.warnings, *prepared.warnings)
            vocab = data.tokenizer.vocab_size
            layout = rank_layout(config, schedule, prepared.deepspeed, vocab, gpu=_on_gpu())
            start = RunStart(config, schedule, data, texts, built, backends, layout, warnings)
            start.write(log, new=new)
            for note in notes:
                opened[0].say(f"  {note}")
            if changes:  # figures of such a run must be told from those of one setting
                opened[0].record("changed", step=position.step if position else 0, lines=changes)

    dist.agree(open_log, only_first=True)
    trainer = Trainer(
        config,
        schedule,
        data,
        built,
        methods,
        log=opened[0] if opened else None,
        checkpoints=prepared.run_dir / "checkpoints",
        identity=identity,
        position=position,
        observers=observers,
        stop=stop,
    )
    trainer.journal.matrix = saved.get("matrix")
    if found is not None:
        (methods.began_anew if allowed.new_optimizer else methods.resumed)(trainer.context)
    return trainer


def _begin_from(folder: Path, built: Built, methods: Methods) -> str:
    """Take over the weights of a checkpoint. Returns the sha256 of its manifest. Collective."""

    def opened() -> tuple[Path, str]:
        start = _start_folder(folder)
        check_lawful(start)
        return start, sha256_file(start / MANIFEST)

    start, found = dist.agree(opened, only_first=True)
    dist.agree(lambda: state.restore(start, built, methods, weights_only=True))
    built.guard.holds.anchor()
    built.guard.refresh()
    built.guard.audit(0)
    return found


def _start_folder(init_from: Path) -> Path:
    """The checkpoint that is named, or the newest of a run."""
    if not init_from.is_dir():
        raise MissingInputError(f"init_from={init_from}: no such folder. Name a checkpoint's.")
    return init_from if is_checkpoint(init_from) else find_checkpoint(init_from).folder


def _find_checkpoint(folder: RunFolder | None, resume: Resume) -> tuple[Path | None, list[str]]:
    if folder is None or resume == "never":
        return None, []
    root = folder.checkpoints
    found, notes = newest_valid(root, check_lawful)
    if found is None and candidates(root):
        raise DataError(f"{root}: no checkpoint is valid. {notes[0]}. Start in another --run_dir.")
    return found, notes if found else folder.check_unbegun()


def _finish(trainer: Trainer, folder: RunFolder | None) -> dict[str, Any] | None:
    """Write results.json and print the tables, on rank 0. Local."""
    log = trainer.journal.log
    if log is None or folder is None:
        return None
    log.sync()
    summary = summarize(trainer.journal.read_back(log))
    write_json(folder.path / RESULTS, summary)
    text = report(summary)
    found = summary.get("final_density", summary["density"])
    density = {f"topology/density_{k}": v for k, v in found.items()}
    log.scalars(density, tokens=trainer.journal.tokens)
    log.text("run/results", board.preformatted(text), tokens=trainer.journal.tokens)
    log.hparams(board.flat_hparams(trainer.config), board.final_metrics(summary))
    log.say()
    log.say(text)
    log.close()
    if log.wandb:
        log.wandb.results(summary)
        log.wandb.close()
    return summary


def _is_finished(folder: RunFolder, config: RunConfig) -> bool:
    """True if this very run has ended here.

    Raises:
        UserError: another run has; to show its results as this one's would be a lie.
    """
    if not folder.is_complete():
        return False
    made_with = configs.load(RunConfig, folder.path / "config.yaml")
    check_config(folder.path, configs.to_dict(made_with), configs.to_dict(config))
    return True


def _show_finished(folder: RunFolder | None) -> dict[str, Any] | None:
    """Print the results, and mend results.json if it is not what the records give. Local."""
    if folder is None:
        return None
    summary = summarize(read_to_end(folder.path))
    # Whole records of another run must not be taken for those of this one.
    found, _ = newest_valid(folder.path / "checkpoints")
    if found is not None:
        check_prefix(folder.path / SCALARS, saved_records(read_manifest(found).state))
    path, text, whole = folder.path / RESULTS, json_text(summary), False
    print(report(summary))
    with contextlib.suppress(OSError):  # what is there and no file is refused where it is written
        whole = read_plain(path) == text.encode()
    if not whole:
        write_json(path, summary)
        print(f"\n{path} did not hold the results of its {SCALARS}, and was made anew.")
    print(f"\nThis run was finished before. To repeat it, remove {folder.path} or give --run_dir.")
    return summary
