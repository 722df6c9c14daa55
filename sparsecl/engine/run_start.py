"""What a run says of itself before its first step: lines for people, and its first record."""

from collections.abc import Mapping
from dataclasses import dataclass

from sparsecl import config as configs
from sparsecl import dist
from sparsecl.data.prepare import PreparedData
from sparsecl.engine import ledger
from sparsecl.engine.build import Built
from sparsecl.engine.devices import attention_kernel
from sparsecl.engine.observe import board, display
from sparsecl.engine.reading import planned_tokens, reading_text
from sparsecl.engine.resume.environment import versions
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Schedule
from sparsecl.engine.texts import EvaluationText, Scored, text_digest, text_sizes
from sparsecl.engine.topology import DTYPES
from sparsecl.log import RunLog
from sparsecl.metrics.passes import pass_warnings
from sparsecl.model.flops import ParameterCounts
from sparsecl.model.memory import Layout
from sparsecl.model.shapes import layer_shapes
from sparsecl.sparse.backends import BackendName
from sparsecl.topology.report import table, topology_digest


@dataclass(frozen=True)
class RunStart:
    """All parts of a run, assembled."""

    config: RunConfig
    schedule: Schedule
    data: PreparedData
    texts: Mapping[str, EvaluationText]
    built: Built
    backends: Mapping[str, BackendName]
    layout: Layout
    warnings: tuple[str, ...]

    def write(self, log: RunLog, *, new: bool) -> None:
        """Print the header and, in a new run, write it everywhere. Local, on rank 0."""
        config, built = self.config, self.built
        counts = ledger.count(config, self.data.tokenizer.vocab_size, built.topologies)
        flops = ledger.flops(
            config, self.schedule, counts, built.topologies, backends=self.backends
        )
        eot_id = self.data.tokenizer.eot_id
        scored = {name: text_sizes(text, eot_id) for name, text in self.texts.items()}
        head = self._header(counts, scored)
        log.say(head)
        overlap = {domain.name: domain.overlap for domain in self.data.domains}
        log.say(display.overlap_line(overlap))
        if built.topologies:
            log.say(table(built.topologies))
        planned = planned_tokens(config, self.schedule)
        train_tokens = {d.name: d.train.num_tokens for d in self.data.domains}
        for warning in (*self.warnings, *pass_warnings(planned, train_tokens)):
            log.say(f"  warning: {warning}")
        log.say(f"  folder      {log.folder}   (watch: {display.watch(log.folder)})")
        log.say()
        if not new:
            return
        density = {"masked": counts.density_masked, "model": counts.density_model}
        methods = config.methods.about(
            layer_shapes(self.schedule.shape),
            len(self.schedule.phases),
            ledger.in_columns(config, self.data.tokenizer.vocab_size, built.topologies),
        )
        log.record(
            "run",
            sealed=True,
            name=config.name,
            domains=list(self.schedule.domains),
            order=self.schedule.order,
            density=density,
            parameters={"live": counts.live, "total": counts.total},
            flops=flops.parts(),
            versions=versions() | {"attention": self._attention()},
            digests={
                "config": configs.digest(config),
                "data": self.data.fingerprint,
                "tokenizer": self.data.tokenizer.digest,
                "topology": topology_digest(built.topologies),
                "windows": text_digest(self.texts),
            },
            entropy_rate={
                d.name: d.entropy_rate for d in self.data.domains if d.entropy_rate is not None
            },
            overlap=overlap,
            scored=scored,
            train_tokens=train_tokens,
            planned=planned,
            **({"methods": methods} if methods else {}),
            config=board.flat_hparams(config),
        )
        log.text("run/about", board.about_card(head), tokens=0)
        log.layout(board.LAYOUT)
        log.scalars({f"topology/density_{k}": v for k, v in density.items()}, tokens=0)
        for name, pixels in board.mask_pictures(built.topologies).items():
            log.image(f"masks/{name}", pixels, tokens=0)

    def _header(self, counts: ParameterCounts, scored: Mapping[str, Scored]) -> str:
        sizes = {d.name: (d.train.num_tokens, d.validation.num_tokens) for d in self.data.domains}
        train = {name: count for name, (count, _) in sizes.items()}
        kind = f"{self.config.tokenizer.kind} vocabulary {self.data.tokenizer.vocab_size}"
        return display.header(
            self.config,
            self.schedule,
            counts,
            self.built.topologies,
            layout=self.layout,
            world_size=dist.world_size(),
            data=display.data_line(sizes, kind),
            reading=reading_text(self.config, self.schedule, train),
            scored=scored,
            backends=self.backends,
        )

    def _attention(self) -> str:
        """The kernel of this rank's attention; it decides how gradients round on a GPU."""
        shape = self.schedule.shape
        heads = shape.heads // self.config.parallel.tensor
        return attention_kernel(heads, shape.head_width, DTYPES[self.config.precision])
