"""Tickets of networks that have learned many tasks, on tiny streams."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.errors import CannotCreateError, UserError
from sparsecl.methods.dst.config import SetConfig
from sparsecl.methods.plasticity.config import CbpConfig
from sparsecl.programs import tickets as program
from sparsecl.streams.config import LearnerConfig, StepConfig, StreamConfig
from sparsecl.streams.loop import Pack
from sparsecl.streams.pair_sets import PairImages
from sparsecl.streams.tickets import Prober, begun, check, fewer, tickets
from sparsecl.topology.config import TopologyConfig
from tests.streams.small import config, images

SPARSE = TopologyConfig(kind="er_fixed", density=0.5)


def prober(**changes) -> Prober:
    settings = config(seeds=2, **changes)
    ((_, weights),) = begun(settings, images(), 0, [0])
    return Prober(settings, images(), (0, 1), 0, weights)


def test_a_round_removes_the_least_weights_of_all_hidden_layers_of_each_network():
    one = prober()
    masks = one.graphs()
    model, _ = one.learn(masks)
    left = fewer(model, masks, 0.2)
    assert set(left) == {"layers.0", "layers.1"}  # never the logits
    total = 9 * 8 + 8 * 8
    for k in range(2):
        weights = [model.get_parameter(f"{n}.weight")[k].detach().abs().flatten() for n in left]
        sizes = torch.cat(weights).numpy()
        kept = np.concatenate([mask[k].ravel() for mask in left.values()])
        assert kept.sum() == total - round(0.2 * total) and sizes[kept].min() > sizes[~kept].max()
    assert all((mask <= left[n]).all() for n, mask in fewer(model, left, 0.5).items())


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_what_was_removed_is_zero_and_the_rest_is_rewound(kind):
    one = prober(optimizer=StepConfig(kind=kind, lr=0.01), topology=SPARSE)
    masks = one.graphs()
    first, accuracy = one.learn(masks)
    left = fewer(first, masks, 0.3)
    second, _ = one.learn(left)
    for name, mask in left.items():
        weight = second.get_parameter(f"{name}.weight").detach().numpy()
        assert not weight[~mask].any() and weight[mask].all() and (mask <= masks[name]).all()
    third, same = one.learn(masks)  # from the same start, whatever was trained in between
    assert np.array_equal(accuracy, same)
    for a, b in zip(first.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_random_mask_has_as_many_weights_in_each_layer_and_stays_in_the_graph():
    one = prober(topology=SPARSE)
    graph = one.graphs()
    model, _ = one.learn(graph)
    left = fewer(model, graph, 0.5)
    first, again, other = (one.drawn(left, ("after", 0, n)) for n in (1, 1, 2))
    for name, mask in first.items():
        assert (mask.sum((1, 2)) == left[name].sum((1, 2))).all() and (mask <= graph[name]).all()
        assert (mask == again[name]).all() and (mask != left[name]).any()
        assert (mask != other[name]).any()


def test_networks_are_those_of_a_run_and_the_whole_one_learns_as_the_run_does():
    settings = config(seeds=2, tasks=3, methods={"cbp": CbpConfig(rate=0.01, maturity=5)})
    pack, found = Pack(settings, images(), 0), []

    def record(kind: str, *, task: int, **figures: Any) -> None:
        if kind == "before" and task == 2 and not found:
            found.extend(param.detach().clone() for param in pack.model.parameters())

    pack.train(record, lambda pack: None, lambda *args: None)
    kept = dict(begun(settings, images(), 0, [2, 0]))
    assert list(kept) == [0, 2]
    assert all(torch.equal(a, b) for a, b in zip(kept[2].values(), found, strict=True))
    plain, shares = config(seeds=2, tasks=1), []
    Pack(plain, images(), 0).train(
        lambda kind, **v: shares.append(v["online_accuracy"]) if kind == "task" else None,
        lambda pack: None,
        lambda *args: None,
    )
    made = tickets(plain, images(), after=[0], rounds=1)
    assert [row[0] for row in made["after"]["0"]["ticket"]] == shares


@pytest.mark.parametrize("kind", ["permuted_mnist", "image_pairs"])
def test_every_density_of_every_n_has_its_accuracies(kind):
    stream = StreamConfig(kind=kind, samples_per_task=30, batch=3)
    learner = LearnerConfig(width=8, layers=2, activation="crelu")
    data = images() if kind == "permuted_mnist" else PairImages(**vars(images()), test=images(12))
    settings = config(seeds=3, together=2, stream=stream, learner=learner)
    found = tickets(settings, data, after=[1, 0], rounds=2)
    cells = 9 * 8 + 16 * 8
    left = cells - round(0.2 * cells)
    wanted = [1, left / cells, (left - round(0.2 * left)) / cells]
    assert found["densities"] == pytest.approx(wanted)
    assert list(found["after"]) == ["0", "1"] and found["probe_task"] == 1
    for kinds in found["after"].values():
        ticket, random = np.array(kinds["ticket"]), np.array(kinds["random"])
        assert ticket.shape == random.shape == (3, 3)
        assert np.array_equal(ticket[:, 0], random[:, 0]) and ((ticket >= 0) & (ticket <= 1)).all()


def test_the_command_writes_a_table_a_file_and_a_picture(tmp_path, capsys):
    pytest.importorskip("sklearn")
    small = ("stream.samples_per_task=40", "panel.samples=10", "seeds=2", "learner.width=8")
    files = ("--json", str(tmp_path / "t.json"), "--plot", str(tmp_path / "t.png"))
    asked = ("--after", "0", "1", "--rounds", "1")
    assert program.main(["stream", *asked, *files, "--set", *small]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["measure"] == "online_accuracy" and len(found["densities"]) == 2
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert "online accuracy on task 2; 2 seeds" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_a_file_that_cannot_be_written_is_told_before_the_work(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "stream", lambda options: pytest.fail("work was begun"))
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "t.png"
    assert program.main(["stream", flag, str(place)]) == CannotCreateError.exit_code
    assert f"{flag} {place}: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "asked", "text"),
    [
        ({"learner": LearnerConfig(kind="linear")}, ([0], 1, 0.2), "learner.kind=linear: tickets"),
        ({"methods": {"set": SetConfig()}}, ([0], 1, 0.2), "methods.set: tickets are of the graph"),
        ({}, ([0, 0], 1, 0.2), r"--after \[0, 0\]: numbers of tasks"),
        ({}, ([0], 0, 0.2), "--rounds 0 must be"),
        ({}, ([0], 1, 1.0), "--share 1 between 0 and 1"),
    ],
)
def test_what_has_no_tickets_is_said(changes, asked, text):
    with pytest.raises(UserError, match=text):
        check(config(**changes), *asked)
