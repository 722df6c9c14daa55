"""Networks side by side are what each would be alone, step for step; and a plain reference."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsecl import signals
from sparsecl.errors import DataError, InvariantError, Preempted, UserError
from sparsecl.methods.cl.config import EwcConfig, LwfConfig, MasConfig, ReplayConfig, SiConfig
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
from sparsecl.streams import native, run
from sparsecl.streams.config import LearnerConfig, StepConfig, StreamRunConfig
from sparsecl.streams.figures import change_eranks
from sparsecl.streams.loop import Pack
from sparsecl.topology.config import TopologyConfig
from tests.streams.small import config, images

MANY = {
    "cbp": CbpConfig(rate=0.01, maturity=5),
    "shrink_perturb": ShrinkPerturbConfig(sigma=1e-3, shrink=0.1),
    "l1": L1Config(strength=1e-3),
}
SPARSE = TopologyConfig(kind="er_fixed", density=0.4)


def trained(settings: StreamRunConfig, pack: int = 0) -> tuple[Pack, list[dict[str, Any]]]:
    """A pack at its end, and its records."""
    found: list[dict[str, Any]] = []
    made = Pack(settings, images(), pack)
    made.train(
        lambda kind, **values: found.append({"kind": kind, **values}),
        lambda pack: None,
        lambda *args: None,
    )
    return made, found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"methods": MANY, "topology": SPARSE},
        {"methods": {"cbp": CbpConfig(rate=0.01, maturity=5, utility="adaptable_contribution",
                                      bias_transfer=True, adam_restart="per_weight")},
         "optimizer": StepConfig(kind="adam", lr=0.01)},
        {"methods": {"redo": RedoConfig(every=7, tau=0.5), "l2": L2Config(strength=0.01),
                     "l2_init": L2InitConfig(strength=0.01)}, "topology": SPARSE},
        {"batch": 5, "optimizer": StepConfig(momentum=0.9, weight_decay=0.01)},
        {"methods": {"upgd": UpgdConfig(sigma=0.1, beta=0.9, scaling="code", vectors=True)},
         "optimizer": StepConfig(lr=0.1, weight_decay=0.01), "topology": SPARSE},
        {"methods": {"upgd": UpgdConfig(sigma=0.1, scope="local", protecting=False)}},
        {"methods": {"upgd": UpgdConfig(sigma=0.1, utility="feature")}, "topology": SPARSE},
        {"methods": {"upgd": UpgdConfig(utility="feature", scope="local")}},
        {"methods": {"upgd": UpgdConfig(order=2, sigma=0.1)}, "topology": SPARSE, "batch": 3},
        {"methods": {"upgd": UpgdConfig(order=2, utility="feature", sigma=0.1), "cbp": MANY["cbp"]},
         "learner": LearnerConfig(width=8, layers=2, activation="crelu"), "topology": SPARSE},
    ],
    ids=["sgd", "many methods, sparse", "cbp under adam", "redo and springs", "batches",
         "upgd", "upgd by rows", "upgd of units", "upgd of units by layers", "second order",
         "second order of units, crelu"],
)  # fmt: skip
def test_side_by_side_is_one_at_a_time_bit_for_bit(changes):
    together, records = trained(config(seeds=3, **changes))
    assert len(together.seeds) == 3
    for k in range(3):
        alone, own = trained(config(seeds=3, together=1, **changes), pack=k)
        pairs = zip(together.model.parameters(), alone.model.parameters(), strict=True)
        assert all(torch.equal(a[k], b[0]) for a, b in pairs)
        same = [record for record in records if record["seed"] == k]
        assert [r for r in own if r["kind"] == "task"] == [r for r in same if r["kind"] == "task"]
        # Figures of the panel sum in another order.
        for record, other in zip(own, same, strict=True):
            assert record.pop("kind") == other["kind"]
            wanted = {name: value for name, value in other.items() if name != "kind"}
            assert record == pytest.approx(wanted, rel=1e-5)
    for method in together.methods.methods:
        if method.name in ("cbp", "redo"):
            assert method.num_replaced > 5


@pytest.mark.parametrize("topology", [TopologyConfig(kind="dense"), SPARSE], ids=["dense", "er"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_step_by_hand_is_that_of_autograd(batch, topology):
    pack = Pack(config(seeds=2, topology=topology), images(), 0)
    x, y = torch.rand(2, batch, 9), torch.randint(3, (2, batch))
    logits, losses = pack.model.learn(x, y)
    by_hand = [param.grad.clone() for param in pack.model.parameters()]
    pack.optimizer.zero_grad()
    expected = pack.model(x)
    F.cross_entropy(expected.flatten(0, 1), y.flatten(), reduction="sum").div(batch).backward()
    for found, param in zip(by_hand, pack.model.parameters(), strict=True):
        assert torch.allclose(found, param.grad, atol=1e-6) and found.abs().sum() > 0
    assert torch.allclose(logits, expected) and losses.shape == (2, batch)


def test_a_plain_network_learns_the_same():
    """Thirty lines of torch, from the weights that the run begins with."""
    settings = config(seeds=1)
    begin = Pack(settings, images(), 0)
    params = [param.detach()[0].clone().requires_grad_() for param in begin.model.parameters()]
    tasks, right = begin.tasks[0], []
    for task in range(2):
        hits = 0
        for image in tasks.order(task):
            pixels, label = tasks.read(task, image[None])
            h = torch.from_numpy(pixels)
            for k in range(3):
                h = F.linear(h, params[2 * k], params[2 * k + 1])
                h = h.relu() if k < 2 else h
            hits += int(h.argmax() == int(label[0]))
            F.cross_entropy(h, torch.from_numpy(label)).backward()
            with torch.no_grad():
                for param in params:
                    param -= 0.1 * param.grad
                    param.grad = None
        right.append(hits / 30)
    made, records = trained(settings)
    assert [r["online_accuracy"] for r in records if r["kind"] == "task"] == right
    for param, found in zip(params, made.model.parameters(), strict=True):
        assert torch.allclose(param, found[0], atol=1e-5)


def test_absent_weights_stay_absent_and_graphs_differ_by_seed():
    pack, _ = trained(config(seeds=2, topology=SPARSE, methods=MANY))
    masks = pack.model.masks()
    assert set(masks) == {"layers.0.weight", "layers.1.weight"}
    for name, dead in masks.items():
        weight = dict(pack.model.named_parameters())[name]
        assert (
            not weight[dead].any()
            and (~dead).sum((1, 2)).tolist() == [round(0.4 * dead[0].numel())] * 2
        )
        assert not torch.equal(dead[0], dead[1])
    assert pack.guard.checks == 2 and pack.guard.nonzero == 0


@pytest.mark.parametrize(
    "methods",
    [
        {"ewc": EwcConfig(strength=1.0, sequences=4)},
        {"ewc": EwcConfig(strength=1.0, sequences=4, fisher="true"), "l1": L1Config()},
        {"si": SiConfig(strength=1e-3)},
        {"mas": MasConfig(strength=0.1, sequences=4)},
        {"replay": ReplayConfig(sequences=8, share=0.5)},
        {"upgd": UpgdConfig(), "ewc": EwcConfig(strength=1.0, sequences=4)},
        {"upgd": UpgdConfig(utility="feature", scope="local"), "dropout": DropoutConfig(p=0.5)},
        {"dropout": DropoutConfig(p=0.5)},
    ],
    ids=lambda methods: "+".join(methods),
)
def test_methods_that_take_one_network_in_hand_run_on_each(methods):
    settings = config(seeds=2, methods=methods, batch=2)
    assert settings.packs == ((0,), (1,))
    made, records = trained(settings, pack=1)
    assert {record["seed"] for record in records} == {1}
    plain, _ = trained(config(seeds=2, together=1, batch=2), pack=1)
    pairs = zip(made.model.parameters(), plain.model.parameters(), strict=True)
    assert any(not torch.equal(a, b[0]) for a, b in pairs)


def prepared(folder, **changes):
    return run.Prepared(config(seeds=2, **changes), images(), folder)


@pytest.fixture
def signal():
    yield
    signals.forget()


def content(folder) -> Any:
    lines = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "sealed")} for line in lines]


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": MANY, "optimizer": StepConfig(kind="adam", lr=0.01)},
        {"methods": {"upgd": UpgdConfig(order=2, sigma=0.1)}, "topology": SPARSE,
         "learner": LearnerConfig(width=8, layers=2, activation="crelu")},
    ],
    ids=["many methods", "second order, crelu"],
)  # fmt: skip
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch, signal, changes):
    """In the middle of a task, and again at its end."""
    run.run(prepared(tmp_path / "whole", **changes))
    step = Pack._step
    for stop in (11, 30):
        done = 0

        def counted(pack: Pack, x: Any, y: Any) -> None:
            nonlocal done
            step(pack, x, y)
            done += 1
            if done == stop:  # noqa: B023
                signals.note(15)

        monkeypatch.setattr(Pack, "_step", counted)
        with pytest.raises(Preempted, match="SIGTERM: saved"):
            run.run(prepared(tmp_path / "stopped", **changes))
        signals.forget()
        monkeypatch.setattr(Pack, "_step", step)
    run.run(prepared(tmp_path / "stopped", **changes))
    assert content(tmp_path / "whole") == content(tmp_path / "stopped")
    ends = [sorted((tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "stopped")]
    assert [p.name for p in ends[0]] == [p.name for p in ends[1]]
    assert [p.read_bytes() for p in ends[0][1:]] == [p.read_bytes() for p in ends[1][1:]]


def test_results_are_what_the_records_give(tmp_path):
    found = run.run(prepared(tmp_path, tasks=4))
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert len(found["online_accuracy"]) == len(found["accuracy_before"]) == len(found["p"]) == 4
    for name in ("dead", "dormant", "erank", "srank99", "stable_rank_F", "weight_mean_abs"):
        assert len(found["panel"][name]) == 5
    assert len(found["change_erank"]) == 4 and "change_erank" not in found["panel"]
    each = [found["per_seed"][seed]["online_accuracy"] for seed in ("0", "1")]
    assert found["online_accuracy"] == pytest.approx(np.mean(each, 0).tolist())
    assert found["audit"] == {"checks": 4, "nonzero": 0}
    assert run.run(prepared(tmp_path, tasks=4)) == found  # shown again
    with pytest.raises(UserError, match="another config .stream.tasks: 4 -> 5"):
        run.run(prepared(tmp_path, tasks=5))


def test_a_run_begins_anew_only_if_it_can_have_had_no_checkpoint(tmp_path, capsys):
    run.run(prepared(tmp_path, tasks=4))
    lines = (tmp_path / "scalars.jsonl").read_text().splitlines(keepends=True)
    for name in ("results.json", "checkpoints"):
        path = tmp_path / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    for kept in (lines, [line for line in lines if '"end"' not in line]):
        (tmp_path / "scalars.jsonl").write_text("".join(kept))
        with pytest.raises(DataError, match="no checkpoint is left .* to give that run up, remove"):
            run.run(prepared(tmp_path, tasks=4))
    (tmp_path / "scalars.jsonl").write_text("".join(lines[:2]) + '\0\0torn {"')
    with pytest.raises(UserError, match="another config .stream.tasks: 4 -> 5"):
        run.run(prepared(tmp_path, tasks=5))
    run.run(prepared(tmp_path, tasks=4))
    assert "Begins anew: 2 records, and no checkpoint" in capsys.readouterr().out
    again = (tmp_path / "scalars.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == lines[:-1]


def test_weights_that_the_last_step_has_made_infinite_are_told(tmp_path, monkeypatch):
    step = Pack._step

    def spoiled(pack: Pack, x: Any, y: Any) -> None:
        step(pack, x, y)
        if pack.num_done == 30:
            next(pack.model.parameters()).data[1, 0, 0] = torch.inf

    monkeypatch.setattr(native, "takes", lambda *args: False)
    monkeypatch.setattr(Pack, "_step", spoiled)
    with pytest.raises(InvariantError, match="task 0: seed 1: its weights are not finite; lower"):
        run.run(prepared(tmp_path))


def test_the_directions_that_a_task_uses_by_hand():
    before = {"a": torch.rand(2, 3, 4), "b": torch.rand(2, 2, 2)}
    now = {name: weight.clone() for name, weight in before.items()}
    now["a"][0] += torch.outer(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 3.0]))
    now["b"] += torch.eye(2)  # two directions of equal size; layer a of network 1 stays
    assert change_eranks(before, now) == pytest.approx([(1 + 2) / 2, (0 + 2) / 2], abs=1e-3)


def test_what_cannot_run_is_said_before_any_work(tmp_path):
    data = pytest.importorskip("sklearn") and None
    for changes, text in (
        ({"methods": {"lwf": LwfConfig()}}, "methods.lwf: it does not run on the networks"),
        ({"methods": {"cbp": CbpConfig(adam_restart="per_weight")}}, "methods.cbp.adam_restart"),
        ({"samples": 5}, "panel.samples=10 is more than a task has"),
    ):
        with pytest.raises(UserError, match=text):
            run.check(config(**changes), data)
    with pytest.raises(ValueError, match="topology.kind=ticket"):
        config(topology=TopologyConfig(kind="ticket"))
    with pytest.raises(ValueError, match="batch=4 does not divide samples_per_task=30"):
        config(batch=4)
    assert LearnerConfig(width=5, layers=1).shapes(4, 3)[1].out_features == 3
