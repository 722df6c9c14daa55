"""What a run wrote down: scalars.jsonl read back into typed records.

This file is the only reader of scalars.jsonl; every score in sparsecl is computed from what it
returns. A run that was killed and resumed repeats some steps. The later lines are the true ones,
because the weights were rewound too: reading drops whatever lies after the step resumed from.

A record that has changed since it was written is never read as another: the header, the end of each
phase and the end of the run are sealed (seal.py), and reading checks that.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsecl.errors import DataError, MissingInputError
from sparsecl.metrics.header import check_header, domains_and_order, is_count, shown
from sparsecl.metrics.performance import read_performance
from sparsecl.opening import Opener, plain, plain_input
from sparsecl.seal import Extent, sealed_lines

SCALARS = "scalars.jsonl"
WITH_IDENTITY = "eval_with_identity"
_EVALS = ("eval", WITH_IDENTITY)
TURNOVER = ("came", "lifetime", "ever")
START_PHASE = -1  # the phase written on evaluations that come before any training


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over the predicted tokens of one text."""

    loss_sum: float
    """Summed next-token loss in nats; NaN after a divergence."""
    num_tokens: int
    num_bytes: int
    num_correct: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.loss_sum / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """Comparable across tokenizers; NaN if the bytes were not counted."""
        return self.loss_sum / (math.log(2.0) * self.num_bytes) if self.num_bytes else math.nan

    @property
    def accuracy(self) -> float:
        """Share of tokens whose most likely prediction was right."""
        return self.num_correct / self.num_tokens


@dataclass(frozen=True, kw_only=True)
class Evaluation(Score):
    """One domain's validation text, scored once.

    Rows of the result matrix ("start", "phase_end") stand on more text than evaluations "during" a
    phase. A curve, or whatever else has both in it, takes `inside` of every evaluation: that is one
    text throughout.
    """

    phase: int
    at: str
    step: int
    tokens: int
    domain: str
    inside: Score
    """On the text that is scored inside phases; the same sums if that is the text here."""


@dataclass(frozen=True, kw_only=True)
class TrainPoint:
    """One logged training step; `tokens` counts from the start of the run."""

    phase: int
    step: int
    tokens: int
    loss: float
    """Nats per token over the whole batch, replayed sequences included."""
    replayed_tokens: int | None = None
    """Tokens of earlier sequences trained again so far, beside `tokens`; None without replay."""
    replayed_by_method: dict[str, int] = field(default_factory=dict)
    """The same for each method that has replayed; none in runs of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class PhaseMark:
    """Begin or end of one phase on the token axis."""

    phase: int
    event: str
    step: int
    tokens: int
    replayed_by_phase: tuple[int, ...] = ()
    """Tokens trained again up to now, by the phase that read them first."""
    live: int | None = None
    """Live weights of all matrices on a topology; None where no method moves them."""
    cells: int = 0
    """Of these matrices, where `live` is known."""
    came: float | None = None
    lifetime: float | None = None
    ever: float | None = None
    """As in engine/observe/turnover.py, where a method moves live weights."""
    methods: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """What methods measured of themselves, by method and figure; None = not finite."""


@dataclass(frozen=True, kw_only=True)
class PlasticityPoint:
    """Figures of plasticity at the end of one phase, by name; None = not measured."""

    phase: int
    step: int
    tokens: int
    layers: dict[str, dict[str, float | None]]
    """By block; without figures of activations if the probe was off."""
    final: dict[str, float | None]
    """Of the final hidden state; empty if the probe was off."""
    total: dict[str, float | None]
    """Of the whole model, and of the updates of the phase."""


@dataclass(frozen=True, kw_only=True)
class DriftPoint:
    """How far the model is, at the end of one phase, from where it was right after the own phase of
    each earlier domain (engine/observe/drift.py), by domain."""

    phase: int
    kl: dict[str, float | None]
    """KL(model then || model now), nats per token; None = not finite."""
    standard_error: dict[str, float | None]
    num_tokens: dict[str, int]
    """Positions behind both."""


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """Everything offline metrics know about one run."""

    name: str
    domains: tuple[str, ...]
    order: tuple[int, ...]
    """order[p] = index of the domain trained in phase p, for all planned phases; -1 = all of
    them at once."""
    header: dict[str, Any]
    """The record of kind "run" as written: config, density, parameters, versions, digests."""
    evaluations: tuple[Evaluation, ...]
    """Of the network as it stands: nobody is told which domain it is."""
    train: tuple[TrainPoint, ...]
    phases: tuple[PhaseMark, ...]
    plasticity: tuple[PlasticityPoint, ...] = ()
    drift: tuple[DriftPoint, ...] = ()
    """Of the phases that had another domain before them; none in runs of earlier versions."""
    with_identity: tuple[Evaluation, ...] = ()
    """The rows of the matrix again, scored by methods that are told the domain; empty if none
    is."""
    audit_checks: int
    audit_nonzero: int
    audit_held: int = 0
    """Weights that were held at the last audit: by methods, or by role update."""
    seconds: float | None
    """Wall clock of the whole run; None until it has ended."""
    tokens_per_second: float | None
    performance: dict[str, Any] | None = None
    """What the run cost (metrics/performance.py); None until it has ended, and in old runs."""
    warnings: tuple[str, ...]
    ended: bool
    """The run has written its last record."""

    extent: Extent
    """The file that all this was read from."""


def read_records(path: Path | str) -> RunRecords:
    """Read a run folder, or a scalars.jsonl directly.

    Raises:
        MissingInputError: if there is no such file or folder.
        DataError: if it is empty, holds no "run" record, a whole line is broken, or it has changed
            since the run wrote it.
    """
    file, opener = _scalars_file(Path(path))
    try:
        with open(file, "rb", opener=opener) as stream:
            content = stream.read()
    except OSError as error:
        raise MissingInputError(f"{file}: cannot be read ({error.strerror})") from None
    warnings: list[str] = []
    reader = _Reader()
    for number, record, sealed in _lines(file, content, warnings):
        try:
            reader.take(record, sealed=sealed)
        except ValueError as error:
            raise DataError(f"{file}:{number}: {error}") from None
    if reader.header is None:
        raise DataError(f'{file}: no record of kind "run": not the scalars of a training run')
    extent = Extent.of(content)
    return reader.finish(warnings, extent=extent, default_name=file.resolve().parent.name)


def _scalars_file(path: Path) -> tuple[Path, Opener]:
    if path.is_dir():
        if not os.path.lexists(path / SCALARS):
            raise MissingInputError(f"{path}: no {SCALARS} in it, so this is not a run folder")
        return path / SCALARS, plain
    if not path.exists():
        raise MissingInputError(f"{path}: no such run folder or file")
    return path, plain_input


def _lines(
    file: Path, content: bytes, warnings: list[str]
) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Yield (line number, record, it is sealed). The last line may be torn: its writer was killed.

    Raises DataError for any other line that is no record, and where a seal shows a change.
    """
    if not content.strip():
        raise DataError(f"{file}: the file is empty, the run has not written anything")
    number = 0
    try:
        for number, (line, sealed) in enumerate(sealed_lines(content), start=1):
            record = _object(line)
            if record is not None:
                yield number, record, sealed
            elif line.strip():
                # A killed writer leaves the beginning of a line; an object that lacks nothing but
                # its newline had one.
                if line.endswith(b"\n") or _object(line[:-1]) is not None:
                    raise DataError(
                        f"{file}:{number}: not a JSON object. Restore the file from a copy."
                    )
                warnings.append(f"{file}:{number}: the last line is incomplete and was ignored")
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}:{number + 1}: {error}. Restore the file from a copy.") from None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8; brackets without end
        return None
    return record if isinstance(record, dict) else None


class _Reader:
    """Collects records in order and rewinds where a resumed run repeats itself."""

    def __init__(self) -> None:
        self.header: dict[str, Any] | None = None
        self.domains: tuple[str, ...] = ()
        self.order: tuple[int, ...] = ()
        # (step, slot, entry); steps never fall, so a rewind only pops from the end.
        self.entries: list[tuple[int, tuple[Any, ...], Any]] = []
        self.end: dict[str, float | None] = {}
        self.performance: dict[str, Any] | None = None
        self.ended = False
        self.seals = False
        """The run seals its records; earlier versions did not."""

    def take(self, record: dict[str, Any], *, sealed: bool) -> None:
        """Add one record. Raises ValueError if a known kind has a missing or odd value."""
        kind = record.get("kind")
        border = kind in ("run", "end") or (kind == "phase" and record.get("event") == "end")
        if self.seals and self.ended:  # no seal comes after it, so nothing vouches for it
            raise ValueError("stands after the end of the run, which wrote nothing more. Remove it")
        if self.seals and border and not sealed:
            raise ValueError("its seal is missing, so it is not as it was written")
        if kind == "run":
            self.seals = sealed
        if kind == "run":
            self._take_run(record)
        elif kind == "end":
            self.ended = True
            self.end = {key: _optional(record, key) for key in ("seconds", "tokens_per_second")}
            if "performance" in record:
                self.performance = read_performance(record["performance"])
        elif kind in ("train", *_EVALS, "audit", "phase", "plasticity", "drift"):
            if self.header is None:
                raise ValueError(f'kind "{kind}" comes before kind "run"')
            self._take_entry(kind, record)

    def _take_run(self, record: dict[str, Any]) -> None:
        domains, order = domains_and_order(record)
        check_header(record)
        if self.header is not None and (domains, order) != (self.domains, self.order):
            raise ValueError("a second run with other domains or another order is in the same file")
        self.header, self.domains, self.order = record, domains, order
        self.end, self.performance, self.ended = {}, None, False

    def _take_entry(self, kind: str, record: dict[str, Any]) -> None:
        step = _integer(record, "step")
        while self.entries and self.entries[-1][0] > step:
            self.entries.pop()
        if kind in _EVALS:
            entry = self._evaluation(record, step)
            slot = (kind, entry.phase, entry.at, entry.domain, step)
        elif kind == "train":
            entry = TrainPoint(
                phase=self._phase(record),
                step=step,
                tokens=_integer(record, "tokens"),
                loss=_real(record, "loss"),
                replayed_tokens=(
                    _integer(record, "replayed_tokens") if "replayed_tokens" in record else None
                ),
                replayed_by_method=_counts(record, "replayed_by_method"),
            )
            slot = (kind, step)
        elif kind == "phase":
            entry = PhaseMark(
                phase=self._phase(record),
                event=str(record.get("event")),
                step=step,
                tokens=_integer(record, "tokens"),
                replayed_by_phase=_integers(record, "replayed_by_phase"),
                live=record.get("live"),
                cells=record.get("cells", 0),
                methods=_method_figures(record),
                **{key: _real(record, key) for key in TURNOVER if key in record},
            )
            if entry.live is not None and not (
                is_count(entry.live) and is_count(entry.cells) and 0 < entry.cells >= entry.live
            ):
                raise ValueError(f"live must be a count of cells, got {shown(record['live'])}")
            slot = (kind, entry.phase, entry.event)
        elif kind == "plasticity":
            entry = self._plasticity(record, step)
            slot = (kind, entry.phase)
        elif kind == "drift":
            entry = self._drift(record)
            slot = (kind, entry.phase)
        else:
            held = _integer(record, "held") if "held" in record else 0
            entry = (_integer(record, "checks"), _integer(record, "nonzero"), held)
            slot = (kind, step)
        self.entries.append((step, slot, entry))

    def _evaluation(self, record: dict[str, Any], step: int) -> Evaluation:
        domain, at = record.get("domain"), record.get("at")
        if domain not in self.domains:
            raise ValueError(f"domain {domain!r} is not one of {', '.join(self.domains)}")
        own = _score(record)
        return Evaluation(
            phase=START_PHASE if at == "start" else self._phase(record),
            at=str(at),
            step=step,
            tokens=_integer(record, "tokens"),
            domain=domain,
            inside=_score(_mapping(record, "inside")) if "inside" in record else own,
            **asdict(own),
        )

    def _plasticity(self, record: dict[str, Any], step: int) -> PlasticityPoint:
        layers = _mapping(record, "layers")
        return PlasticityPoint(
            phase=START_PHASE if record.get("at") == "start" else self._phase(record),
            step=step,
            tokens=_integer(record, "tokens"),
            layers={name: _figures(layers, name) for name in layers},
            final=_figures(record, "final"),
            total=_figures(record, "total"),
        )

    def _drift(self, record: dict[str, Any]) -> DriftPoint:
        kl, error = (_figures(record, key) for key in ("kl", "standard_error"))
        counts = _counts(record, "num_tokens")
        for name in (*kl, *error, *counts):
            if name not in self.domains:
                raise ValueError(f"domain {name!r} is not one of {', '.join(self.domains)}")
        phase = self._phase(record)
        return DriftPoint(phase=phase, kl=kl, standard_error=error, num_tokens=counts)

    def _phase(self, record: dict[str, Any]) -> int:
        phase = _integer(record, "phase")
        if not 0 <= phase < len(self.order):
            raise ValueError(f"phase {phase} is outside the {len(self.order)} phases of the run")
        return phase

    def finish(self, warnings: list[str], *, extent: Extent, default_name: str) -> RunRecords:
        """Freeze. Of two records for one slot the later one is kept."""
        assert self.header is not None
        last = {slot: entry for _, slot, entry in self.entries}
        entries = list(last.values())
        audits = [entry for entry in entries if isinstance(entry, tuple)]
        return RunRecords(
            name=str(self.header.get("name") or default_name),
            domains=self.domains,
            order=self.order,
            header=self.header,
            evaluations=tuple(e for slot, e in last.items() if slot[0] == "eval"),
            with_identity=tuple(e for slot, e in last.items() if slot[0] == WITH_IDENTITY),
            train=tuple(e for e in entries if isinstance(e, TrainPoint)),
            phases=tuple(e for e in entries if isinstance(e, PhaseMark)),
            plasticity=tuple(e for e in entries if isinstance(e, PlasticityPoint)),
            drift=tuple(e for e in entries if isinstance(e, DriftPoint)),
            audit_checks=audits[-1][0] if audits else 0,
            audit_nonzero=max((nonzero for _, nonzero, _ in audits), default=0),
            audit_held=audits[-1][2] if audits else 0,
            seconds=self.end.get("seconds"),
            tokens_per_second=self.end.get("tokens_per_second"),
            performance=self.performance,
            warnings=tuple(warnings),
            ended=self.ended,
            extent=extent,
        )


def _score(record: dict[str, Any]) -> Score:
    num_tokens = _integer(record, "num_tokens")
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be >= 1, got {num_tokens}")
    return Score(
        loss_sum=_real(record, "loss_sum"),
        num_tokens=num_tokens,
        num_bytes=_integer(record, "num_bytes"),
        num_correct=_integer(record, "num_correct"),
    )


def _integer(record: dict[str, Any], key: str) -> int:
    value = record.get(key)
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError(f"{key} must be an integer of 64 bits, got {shown(value)}")
    return value


def _integers(record: dict[str, Any], key: str) -> tuple[int, ...]:
    values = record.get(key, [])
    if not isinstance(values, list) or not all(map(is_count, values)):
        raise ValueError(f"{key} must be a list of counts, got {shown(values)}")
    return tuple(values)


def _counts(record: dict[str, Any], key: str) -> dict[str, int]:
    found = record.get(key, {})
    if not isinstance(found, dict) or not all(is_count(value) for value in found.values()):
        raise ValueError(f"{key} must be counts by name, got {shown(found)}")
    return found


def _real(record: dict[str, Any], key: str) -> float:
    """A number; null stands for a value that was not finite, and infinity becomes NaN too."""
    if key not in record:
        raise ValueError(f"{key} is missing")
    value = record[key]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number, got {shown(value)}")
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # a whole number beyond the largest float
        return math.nan


def _mapping(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be an object, got {value!r}")
    return value


def _figures(record: dict[str, Any], key: str) -> dict[str, float | None]:
    """Numbers by name; None for null."""
    found = _mapping(record, key)
    return {name: _optional(found, name) for name in found}


def _method_figures(record: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    found = _mapping(record, "methods") if "methods" in record else {}
    return {name: _figures(found, name) for name in found}


def _optional(record: dict[str, Any], key: str) -> float | None:
    value = _real(record, key) if key in record else math.nan
    return value if math.isfinite(value) else None
