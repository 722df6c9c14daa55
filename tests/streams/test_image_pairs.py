"""Pairs of classes, a head of zeros at each, and what is held out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsecl import signals
from sparsecl.config import load
from sparsecl.errors import DataError, MissingInputError, Preempted, UserError
from sparsecl.methods.cl.config import EwcConfig
from sparsecl.methods.plasticity.config import (
    CbpConfig,
    DropoutConfig,
    L2Config,
    RedoConfig,
    ShrinkPerturbConfig,
    UpgdConfig,
)
from sparsecl.streams import run
from sparsecl.streams.config import LearnerConfig, StepConfig, StreamConfig, StreamRunConfig
from sparsecl.streams.image_pairs import ImagePairs
from sparsecl.streams.images import Images
from sparsecl.streams.loop import Pack
from sparsecl.streams.pair_sets import PairImages, read_pairs
from sparsecl.topology.config import TopologyConfig
from tests.streams.small import config
from tests.streams.test_image_sets import SHARED, small_mnist, small_omniglot

LINEAR, SPARSE = LearnerConfig(kind="linear"), TopologyConfig(kind="er_fixed", density=0.4)
MANY = {
    "cbp": CbpConfig(rate=0.05, maturity=3),
    "redo": RedoConfig(every=5, tau=0.3),
    "l2": L2Config(strength=0.01),
    "shrink_perturb": ShrinkPerturbConfig(sigma=1e-3, shrink=0.1),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> PairImages:
    """Five classes of six and seven images, of 2 x 3 pixels; two of each are for the test."""
    folder, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    for label in range(5):
        array = rng.integers(0, 256, (6 + label % 2, 2, 3), dtype=np.uint8)
        np.save(folder / f"n{label:02d}.npy", array)
    return read_pairs(folder, test_per_class=2)


def pairs(*, tasks: int = 3, samples: int = 24, **changes: Any) -> StreamRunConfig:
    stream = StreamConfig(kind="image_pairs", tasks=tasks, samples_per_task=samples, batch=4)
    optimizer = StepConfig(lr=0.1, momentum=0.9)
    return config(**{"stream": stream, "optimizer": optimizer, **changes})


def trained(settings: StreamRunConfig, images: PairImages, pack: int = 0) -> tuple[Pack, list]:
    found: list[dict[str, Any]] = []
    made = Pack(settings, images, pack)

    def record(kind: str, **values: Any) -> None:
        found.append({"kind": kind, **values})

    made.train(record, lambda pack: None, lambda *args: None)
    return made, found


def test_an_array_for_each_class(sets):
    assert np.bincount(sets.labels).tolist() == [4, 5, 4, 5, 4]
    assert np.bincount(sets.test.labels).tolist() == [2] * 5
    assert (sets.num_inputs, sets.num_classes) == (6, 2)
    rows = np.concatenate([sets.pixels, sets.test.pixels])
    assert len(np.unique(rows, axis=0)) == 32  # nothing that is tested is trained
    other = PairImages(sets.pixels, sets.labels, 255, "", test=sets)
    assert other.sha256 != sets.sha256  # the digest knows of both


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([[{}]], dtype=object), "is no array of images, uint8 .*object"),
        (np.zeros((4, 6)), "is no array of images, uint8 .*float64"),
        (np.zeros(4, dtype=np.uint8), "is no array of images"),
        (np.zeros((6, 4), dtype=np.uint8, order="F"), "is no array of images"),
        (np.zeros((4, 7), dtype=np.uint8), "has images of 7 numbers, .*a.npy of 6"),
        (b"\x80\x04N.", "is no array of images"),
        ((4, 6), "is no array of images"),
    ],
    ids=["objects", "floats", "one dim", "turned", "another size", "pickle", "torn"],
)
def test_arrays_that_are_none(tmp_path, array, text):
    np.save(tmp_path / "a.npy", np.zeros((4, 6), dtype=np.uint8))
    path = tmp_path / "b.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif isinstance(array, tuple):
        np.save(path, np.zeros(array, dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:-1])
    else:
        np.save(path, array)
    with pytest.raises(DataError, match=text):
        read_pairs(tmp_path, test_per_class=1)


def test_other_folders_and_too_few_images(tmp_path):
    (tmp_path / "mnist").mkdir()
    found = read_pairs(small_mnist(tmp_path / "mnist"), test_per_class=99)
    assert len(found.labels) == len(found.test.labels) == 24  # it has test images of its own
    (tmp_path / "omniglot").mkdir()
    small_omniglot(tmp_path / "omniglot/images_a.zip", {"Greek": 2, "Latin": 1})
    found = read_pairs(tmp_path / "omniglot", test_per_class=3)
    assert np.bincount(found.labels).tolist() == [5] * 3 and found.num_inputs == 784
    with pytest.raises(UserError, match="test_per_class=8: a class of .* has 8 images, so none"):
        read_pairs(tmp_path / "omniglot", test_per_class=8)
    with pytest.raises(MissingInputError, match="has no train-images"):
        read_pairs(tmp_path, test_per_class=1)
    np.save(tmp_path / "a.npy", np.zeros((4, 6), dtype=np.uint8))
    with pytest.raises(UserError, match="has one class, and a pair needs two"):
        read_pairs(tmp_path, test_per_class=1)


def test_every_class_comes_in_turn_and_every_image_once_an_epoch(sets):
    tasks, other = (ImagePairs(sets, samples=20, seed=seed) for seed in (3, 4))
    classes = np.concatenate([tasks.pair(task) for task in range(5)])
    assert sorted(classes[:5]) == list(range(5)) and (classes[5:] == classes[:5]).all()
    assert any((tasks.pair(task) != other.pair(task)).any() for task in range(3))
    for task in range(4):
        rows, mine = tasks.order(task), np.isin(sets.labels, tasks.pair(task))
        assert len(rows) == 20
        for begin in range(0, 20 - mine.sum(), mine.sum()):
            assert sorted(rows[begin : begin + mine.sum()]) == np.flatnonzero(mine).tolist()
        assert rows[: mine.sum()].tolist() != rows[mine.sum() :][: mine.sum()].tolist()
        x, y = tasks.read(task, rows)
        assert x.dtype == np.float32 and np.allclose(x * 255, sets.pixels[rows])
        assert (tasks.pair(task)[y] == sets.labels[rows]).all()
        tested, answers = tasks.held_out(task)
        assert np.bincount(answers).tolist() == [2, 2]
        assert not any((x == image).all(1).any() for image in tested)


@pytest.mark.parametrize("learner", [LearnerConfig(width=8, layers=2), LINEAR], ids=["mlp", "none"])
def test_a_plain_network_learns_the_same(sets, learner):
    """Thirty lines of torch: momentum goes on, the head is zero at each pair."""
    settings = pairs(learner=learner)
    begin = Pack(settings, sets, 0)
    params = [param.detach()[0].clone().requires_grad_() for param in begin.model.parameters()]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    tasks, after = begin.pairs[0], []

    def logits(pixels: Any) -> torch.Tensor:
        h = torch.from_numpy(pixels)
        for k in range(0, len(params), 2):
            h = F.linear(h.relu() if k else h, params[k], params[k + 1])
        return h

    for task in range(3):
        with torch.no_grad():
            for param in params[-2:]:
                param.zero_()
        for rows in tasks.order(task).reshape(6, 4):
            x, y = tasks.read(task, rows)
            optimizer.zero_grad()
            F.cross_entropy(logits(x), torch.from_numpy(y)).backward()
            optimizer.step()
        x, y = tasks.held_out(task)
        after.append(float((logits(x).argmax(1).numpy() == y).mean()))
    made, records = trained(settings, sets)
    for param, found in zip(params, made.model.parameters(), strict=True):
        assert torch.allclose(param, found[0], atol=1e-5)
    assert [r["accuracy_after"] for r in records if r["kind"] == "task"] == after
    assert any(r["accuracy_before"] != 0.5 for r in records if r["kind"] == "before")


def test_classes_that_differ_are_told_apart():
    """A class has its own bright pixel: whatever the pair, held-out images are all answered."""
    rng = np.random.default_rng(1)
    labels = np.arange(40) % 4
    pixels = rng.integers(0, 99, (40, 6), dtype=np.uint8)
    pixels[np.arange(40), labels] = 255
    test = Images(pixels[20:], labels[20:], 255, "")
    train = PairImages(pixels[:20], labels[:20], 255, "", test=test)
    for learner in (LearnerConfig(width=8, layers=1), LINEAR):
        _, records = trained(pairs(learner=learner, samples=400, tasks=4), train)
        assert [r["accuracy_after"] for r in records if r["kind"] == "task"] == [1.0] * 4


@pytest.mark.parametrize(
    "changes",
    [{"learner": LINEAR}, {"methods": MANY, "topology": SPARSE}],
    ids=["linear", "many methods, sparse"],
)
def test_side_by_side_is_one_at_a_time_bit_for_bit(sets, changes):
    together, records = trained(pairs(seeds=3, **changes), sets)
    for k in range(3):
        alone, own = trained(pairs(seeds=3, together=1, **changes), sets, pack=k)
        pairs_of = zip(together.model.parameters(), alone.model.parameters(), strict=True)
        assert all(torch.equal(a[k], b[0]) for a, b in pairs_of)
        same = [r for r in records if r["seed"] == k and r["kind"] == "task"]
        assert [r for r in own if r["kind"] == "task"] == same
    for name, dead in together.model.masks().items():
        assert dead.any() and not dict(together.model.named_parameters())[name][dead].any()
    assert together.guard.checks == 3 and together.guard.nonzero == 0
    for method in together.methods.methods:
        assert method.name not in ("cbp", "redo") or method.num_replaced > 0


@pytest.mark.parametrize(
    "methods",
    [
        {"ewc": EwcConfig(strength=1.0, sequences=4)},
        {"dropout": DropoutConfig(p=0.5)},
    ],
    ids=lambda methods: "+".join(methods),
)
def test_methods_that_take_one_network_in_hand(sets, methods):
    made, records = trained(pairs(seeds=2, methods=methods), sets, pack=1)
    assert [r["seed"] for r in records if "accuracy_after" in r] == [1] * 3
    plain, _ = trained(pairs(seeds=2, together=1), sets, pack=1)
    both = zip(made.model.parameters(), plain.model.parameters(), strict=True)
    assert any(not torch.equal(a, b[0]) for a, b in both)


def content(folder: Path) -> Any:
    lines = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "sealed")} for line in lines]


def test_a_stopped_run_goes_on_bit_for_bit(sets, tmp_path, monkeypatch):
    """At the end of a task, whose successor begins with a head of zeros; and within that one."""
    settings = pairs(seeds=2, methods=MANY)
    whole = run.run(run.Prepared(settings, sets, tmp_path / "whole"))
    step = Pack._step
    for stop in (6, 2):
        left = iter(range(stop - 1, -1, -1))

        def counted(pack: Pack, x: Any, y: Any) -> None:
            step(pack, x, y)
            if not next(left):  # noqa: B023
                signals.note(15)

        monkeypatch.setattr(Pack, "_step", counted)
        with pytest.raises(Preempted, match="SIGTERM: saved"):
            run.run(run.Prepared(settings, sets, tmp_path / "stopped"))
        signals.forget()
        monkeypatch.setattr(Pack, "_step", step)
    again = run.run(run.Prepared(settings, sets, tmp_path / "stopped"))
    assert content(tmp_path / "whole") == content(tmp_path / "stopped")
    assert again["accuracy_after"] == whole["accuracy_after"]
    ends = [sorted((tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "stopped")]
    assert [p.read_bytes() for p in ends[0][1:]] == [p.read_bytes() for p in ends[1][1:]]


@pytest.mark.parametrize("learner", [LearnerConfig(width=8, layers=2), LINEAR], ids=["mlp", "none"])
def test_results_and_their_picture(sets, tmp_path, learner):
    from sparsecl.experiments.plots.streams import stream_plot
    from sparsecl.streams import records

    found = run.run(run.Prepared(pairs(seeds=2, learner=learner), sets, tmp_path))
    each = [found["per_seed"][seed]["accuracy_after"] for seed in ("0", "1")]
    assert found["accuracy_after"] == pytest.approx(np.mean(each, 0).tolist())
    assert len(found["accuracy_after"]) == len(found["online_accuracy"]) == 3
    assert "accuracy_after" not in found["panel"]
    assert ("dead" in found["panel"]) == (learner.kind == "mlp")
    best = found["summary"]["best_window"]
    assert best["accuracy_after"] == pytest.approx(np.mean(found["accuracy_after"]))
    assert "held-out accuracy" in records.table(found) and "at the end of a task was best" in (
        records.said(found)
    )
    stream_plot(found, tmp_path / "stream.png")
    assert (tmp_path / "stream.png").stat().st_size > 10_000


def test_what_is_about_hidden_units_is_refused_without_them():
    for changes, text in (
        ({"topology": SPARSE}, "topology.kind=er_fixed is for hidden layers"),
        ({"methods": {"cbp": CbpConfig()}}, "methods.cbp is about hidden units"),
        ({"methods": {"upgd": UpgdConfig(utility="feature")}}, "methods.upgd is about hidden"),
    ):
        with pytest.raises(ValueError, match=text):
            pairs(learner=LINEAR, **changes)
    assert pairs(learner=LINEAR, methods={"l2": L2Config()}).learner.num_hidden == 0


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "omniglot").is_dir(), reason="no ../shared/omniglot")
def test_pairs_of_omniglot(tmp_path):
    """Six pairs of the config in launch/, for 40 epochs: better than chance on what is held out."""
    path = Path(__file__).resolve().parents[2] / "launch/streams/image_pairs.yaml"
    for kind in ("mlp", "linear"):
        words = [f"stream.data={SHARED / 'omniglot'}", "stream.tasks=6", f"learner.kind={kind}"]
        words.append("stream.samples_per_task=1200")
        prepared = run.check(load(StreamRunConfig, path, words), tmp_path / kind)
        images = prepared.images
        assert set(np.bincount(images.labels)) == {15} and images.num_inputs == 784
        found = run.run(prepared)
        # 180 answers; by chance 0.5 with a deviation of 0.04.
        assert np.mean(found["accuracy_after"]) > 0.65
