"""The methods of a run: every one is off unless its block is there.

No torch: a config is read and checked, a run planned and a report written without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sparsecl.config import younger
from sparsecl.methods.adapters.config import (
    LoraConfig,
    MemoryConfig,
    NLoraConfig,
    OLoraConfig,
    OsftConfig,
)
from sparsecl.methods.brain.config import HstConfig, SleepReplayConfig, WsclConfig, XdgConfig
from sparsecl.methods.cl.config import (
    AgemConfig,
    DerppConfig,
    EwcConfig,
    GemConfig,
    LwfConfig,
    MasConfig,
    PackNetConfig,
    ProgressiveConfig,
    ReplayConfig,
    SelfReplayConfig,
    SiConfig,
)
from sparsecl.methods.dst.config import (
    ChtConfig,
    ChtsConfig,
    DeepRConfig,
    GranetConfig,
    RiglConfig,
    SetConfig,
    SnfsConfig,
)
from sparsecl.methods.facts import AddedParameter, MethodConfig, MethodMemory
from sparsecl.methods.plasticity.config import (
    CbpConfig,
    DropoutConfig,
    L1Config,
    L2Config,
    L2InitConfig,
    RedoConfig,
    ShrinkPerturbConfig,
    UpgdConfig,
)
from sparsecl.methods.sparse_cl.config import AfafConfig, DstClConfig, SparclConfig
from sparsecl.methods.work import MethodWork, RunWork
from sparsecl.sparse.sizes import RankSizes
from sparsecl.topology.layer import LayerShape


@dataclass(frozen=True, kw_only=True)
class MethodsConfig:
    """Mechanisms beside the topology. The core experiment uses none."""

    ewc: EwcConfig | None = None
    """Elastic weight consolidation."""

    si: SiConfig | None = younger(None)
    """Synaptic intelligence: weights are held whose way has lowered the loss."""

    mas: MasConfig | None = younger(None)
    """Memory aware synapses: weights are held that the logits depend on."""

    set: SetConfig | None = None
    """Sparse evolutionary training: the topology moves."""

    rigl: RiglConfig | None = None
    """RigL: the topology moves to where gradients are large."""

    snfs: SnfsConfig | None = younger(None)
    """Sparse networks from scratch: to where their running mean is large."""

    granet: GranetConfig | None = younger(None)
    """GraNet: RigL from a denser start, pruned on the way."""

    deep_r: DeepRConfig | None = younger(None)
    """DEEP R: what would change its sign goes."""

    cht: ChtConfig | None = younger(None)
    """Cannistraci-Hebb training: the topology moves to where its own paths call for it."""

    chts: ChtsConfig | None = younger(None)
    """CHTs and CHTss: the same at random, for large layers."""

    replay: ReplayConfig | None = None
    """Experience replay: earlier sequences are trained again beside the new ones."""

    derpp: DerppConfig | None = None
    """DER++: replay, and the logits of earlier sequences are held where they were."""

    self_replay: SelfReplayConfig | None = younger(None)
    """Self-generated replay: text of the model's own is trained beside the new domain's."""

    lwf: LwfConfig | None = younger(None)
    """Learning without forgetting: on new text the model keeps to what it said before."""

    agem: AgemConfig | None = younger(None)
    """A-GEM: gradients that would raise the loss on remembered sequences are projected."""

    gem: GemConfig | None = younger(None)
    """GEM: the same, for each earlier phase on its own."""

    packnet: PackNetConfig | None = None
    """PackNet: each domain keeps its largest weights and leaves the rest free."""

    progressive: ProgressiveConfig | None = younger(None)
    """Progressive networks: a column for each domain, which hears those of earlier domains."""

    lora: LoraConfig | None = younger(None)
    """LoRA: a low-rank adapter for the later domains, or one for each."""

    o_lora: OLoraConfig | None = None
    """O-LoRA: a low-rank adapter for each domain, orthogonal to those before."""

    n_lora: NLoraConfig | None = younger(None)
    """N-LoRA: a low-rank adapter for each domain, whose update is sparse."""

    osft: OsftConfig | None = younger(None)
    """OSFT: later phases train what the largest singular directions leave free."""

    memory: MemoryConfig | None = younger(None)
    """Sparse memory finetuning: later phases train a few slots of a memory."""

    dst_cl: DstClConfig | None = younger(None)
    """Dynamic sparse training: each domain finds a graph of its own, which is frozen."""

    afaf: AfafConfig | None = younger(None)
    """AFAF: each domain adds links between few hidden units, and leaves some units fixed."""

    sparcl: SparclConfig | None = younger(None)
    """SparCL: weights, sequences and gradients that matter little are left out."""

    xdg: XdgConfig | None = younger(None)
    """Context-dependent gating: each domain has its own part of the hidden units."""

    sleep_replay: SleepReplayConfig | None = younger(None)
    """Sleep replay: after each phase the feed-forward parts fire, and learn from their spikes."""

    hst: HstConfig | None = younger(None)
    """Wake and sleep: remembered sequences are trained in sleep, and weak weights scaled down."""

    wscl: WsclConfig | None = younger(None)
    """WSCL: DER++ with blocks that are frozen, or in sleep alone."""

    cbp: CbpConfig | None = None
    """Continual backpropagation: units that contribute least begin anew."""

    redo: RedoConfig | None = younger(None)
    """ReDo: every so often all units that say little begin anew."""

    shrink_perturb: ShrinkPerturbConfig | None = None
    """Shrink and perturb: weights lose a little of themselves and gain a little noise."""

    upgd: UpgdConfig | None = younger(None)
    """UPGD: useful weights move less, and useless ones are perturbed."""

    dropout: DropoutConfig | None = younger(None)
    """Dropout: in training some hidden units are silent."""

    l1: L1Config | None = younger(None)
    """L1: every weight is pulled towards zero, or towards where the phase has found it."""

    l2: L2Config | None = younger(None)
    """L2: every weight is pulled towards zero, the more the larger it is."""

    l2_init: L2InitConfig | None = younger(None)
    """L2 towards the weights that the run has begun with."""

    def used(self) -> dict[str, MethodConfig]:
        """The blocks that are there, by name, in the order of the fields."""
        blocks = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: block for name, block in blocks.items() if block is not None}

    def parameters(
        self, layers: Sequence[LayerShape], num_phases: int
    ) -> dict[str, AddedParameter]:
        """What the methods add to a model of these linears, by parameter name."""
        added = [block.parameters(layers, num_phases) for block in self.used().values()]
        return {name: parameter for some in added for name, parameter in some.items()}

    def columns(self, num_phases: int) -> tuple[int, int]:
        """Columns of the model, and the rank of what they hear; one method at most has several."""
        return max((block.columns(num_phases) for block in self.used().values()), default=(1, 0))

    def kept(self, rank: RankSizes) -> MethodMemory:
        """What all methods together keep on a rank."""
        return sum((block.memory(rank) for block in self.used().values()), MethodMemory())

    def work(self, run: RunWork) -> MethodWork:
        """What all methods together compute in a run beside the passes of the model."""
        return sum((block.work(run) for block in self.used().values()), MethodWork())

    @property
    def keeps_logits(self) -> bool:
        """A method asks for the logits of each micro-batch."""
        return any(block.keeps_logits for block in self.used().values())

    @property
    def replayed_share(self) -> float:
        """Earlier sequences that are trained again for each new one, by all methods together."""
        return sum(block.replayed_share for block in self.used().values())

    @property
    def reread_share(self) -> float:
        """Of these, the ones that are read from the training text again."""
        return sum(block.reread_share for block in self.used().values())

    def about(
        self, layers: Sequence[LayerShape], num_phases: int, in_columns: int = 0
    ) -> dict[str, dict[str, Any]]:
        """What the first record of a run says of each method, by name."""
        used = self.used().items()
        return {name: block.about(layers, num_phases, in_columns) for name, block in used}

    @property
    def rewires(self) -> bool:
        """A method moves live weights."""
        return any(block.rewires for block in self.used().values())

    @property
    def told_domain(self) -> bool:
        """A method is told the domain when it is tested (flag I): then every row of the matrix is
        scored twice, without and with it."""
        return any("I" in block.flags for block in self.used().values())

    def not_negative(self) -> Sequence[str]:
        """Names, as a checkpoint has them, of slice tensors that are never below zero."""
        blocks = self.used().items()
        return [f"{name}.{state}" for name, block in blocks for state in block.not_negative]
