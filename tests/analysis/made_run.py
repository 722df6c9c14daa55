"""A run folder as the engine leaves it, made without DeepSpeed: config and one checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparsecl import config as configs
from sparsecl.checkpoint.manifest import ParameterEntry, Piece
from sparsecl.checkpoint.publish import publish
from sparsecl.data.prepare import PreparedData, prepare
from sparsecl.engine.observe.clock import Times
from sparsecl.engine.observe.early_end import Best
from sparsecl.engine.observe.health import Seen
from sparsecl.engine.observe.plasticity import PhaseSums
from sparsecl.engine.position import Position
from sparsecl.engine.resume.saved import Observed
from sparsecl.engine.run_config import RunConfig
from sparsecl.model.build import build_gpt
from sparsecl.model.gpt import GPT
from sparsecl.seal import EMPTY
from sparsecl.sparse.registry import sparse_parameters

FILE = "rank_0.safetensors"

TINY = (
    "name=tiny",
    "model={preset: null, layers: 2, width: 32, heads: 4, context: 16}",
    "topology.density=0.25",
    "tokenizer.kind=bytes",
)
SYNTHETIC = "synthetic: {train_tokens: 2000, validation_tokens: 300, num_symbols: 8"


def load(cache: Path, *overrides: str) -> RunConfig:
    """A tiny model on two synthetic domains."""
    domains = ", ".join(
        f"{{name: {name}, source: synthetic, {SYNTHETIC}, seed: {seed}}}}}"
        for seed, name in enumerate("ab")
    )
    data = [f"data.cache_dir={cache}", f"data.domains=[{domains}]"]
    return configs.load(RunConfig, None, [*TINY, *data, *overrides])


def domains_of(config: RunConfig) -> PreparedData:
    context = config.model.resolved().context
    return prepare(config.data, config.tokenizer, context=context, seed=config.seed)


def make_model(config: RunConfig, *, steps: int = 0) -> GPT:
    """The initialised model, after a few plain gradient steps on random tokens."""
    vocab_size = domains_of(config).tokenizer.vocab_size
    model = build_gpt(
        config.model,
        config.topology,
        vocab_size=vocab_size,
        seed=config.seed,
        shape=config.shape,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        text = torch.randint(vocab_size, (4, 17), generator=generator)
        optimizer.zero_grad()
        model(text[:, :-1], text[:, 1:])[0].mean().backward()
        optimizer.step()
    return model


def make_run(folder: Path, config: RunConfig, *, step: int = 3, model: GPT | None = None) -> GPT:
    """Write RUN/config.yaml, RUN/results.json and RUN/checkpoints/step_N; returns the model."""
    model = model or make_model(config, steps=step)
    data = domains_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(configs.dump(config))
    (folder / "results.json").write_text("{}\n")
    tensors, pieces, entries, topologies = {}, [], {}, {}
    sparse = sparse_parameters(model)
    for name, param in model.named_parameters():
        value, shape, live = param.detach(), tuple(param.shape), False
        if name in sparse:
            layer, live = sparse[name].layer, sparse[name].role == "topology"
            shape = tuple(layer.local_shape)
            if live:
                topologies[name] = sparse[name].topology
                value = layer.matrix()[layer.live_mask()]
        piece = Piece(FILE, "master", name, 0, 0, value.numel())
        tensors[piece.key] = value.reshape(-1).clone()
        pieces.append(piece)
        entries[name] = ParameterEntry(shape, int(getattr(param, "partition_dim", -1)), live)
    state: dict[str, Any] = {
        "config": configs.to_dict(config),
        "data": data.fingerprint,
        "tokenizer": data.tokenizer.digest,
        "topology": {n.removesuffix(".weight"): found.digest for n, found in topologies.items()},
        "backends": {},
        "position": asdict(Position(phase_step=step, step=step, started=True)),
        "observers": Observed(
            clock=Times(), health=Seen(), early_end=Best(), plasticity=PhaseSums()
        ).model_dump(),
        "scalars_bytes": 0,
        "scalars_sha256": EMPTY.sha256,
        "audit_checks": 0,
        "matrix": None,
        "optimizer": {
            **{"moments": [], "scalars": {}, "group_step": None, "scaler": {}},
            "counters": {"global_steps": 0, "global_samples": 0, "skipped_steps": 0},
        },
        "methods": {},
    }
    publish(
        folder / "checkpoints",
        step,
        tensors,
        pieces,
        entries,
        state,
        keep=9,
        topologies=topologies,
    )
    return model
