"""Runs of class_incremental: stopped and gone on with, their results, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsecl import config as configs
from sparsecl import signals
from sparsecl.errors import DataError, Preempted, UserError
from sparsecl.experiments.plots.increments import increments_plot
from sparsecl.methods.cl.config import EwcConfig
from sparsecl.methods.plasticity.config import CbpConfig
from sparsecl.streams.cobweb.run import ClassIncrementalConfig, NearestMean, run_learner
from sparsecl.streams.config import LearnerConfig, StreamRunConfig
from sparsecl.streams.increments import records, run
from sparsecl.streams.increments.concepts import ConceptPack
from sparsecl.streams.increments.pack import IncrementPack
from sparsecl.streams.increments.training import NetworkPack
from sparsecl.topology.config import TopologyConfig
from tests.streams.increments.small import config, split
from tests.streams.test_image_sets import SHARED
from tests.streams.test_loop import content
from tests.test_command import ROOT

MNIST = SHARED / "mnist"
CBP = {"cbp": CbpConfig(rate=0.05, maturity=3)}


def prepared(folder: Path, learner: str, **changes: Any) -> run.Prepared:
    images = split()
    return run.Prepared(config(learner, **changes), images.train, folder, images)


@pytest.fixture
def signal():
    yield
    signals.forget()


def same_folders(whole: Path, stopped: Path) -> bool:
    ends = [sorted((folder / "checkpoints").iterdir()) for folder in (whole, stopped)]
    return [p.name for p in ends[0]] == [p.name for p in ends[1]] and all(
        a.read_bytes() == b.read_bytes() for a, b in zip(ends[0][1:], ends[1][1:], strict=True)
    )


@pytest.mark.parametrize("learner", ["convnet", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_a_stopped_network_goes_on_bit_for_bit(tmp_path, monkeypatch, signal, learner):
    """In the middle of an epoch, at the end of one, and at the end of the first task."""
    changes: dict[str, Any] = {"methods": CBP, "increments": {"epochs": 2, "crop": 1}}
    run.run(prepared(tmp_path / "whole", learner, **changes))
    step = NetworkPack._step
    for stop in (3, 1, 4):
        done = 0

        def counted(pack: NetworkPack, rows: Any) -> None:
            nonlocal done
            step(pack, rows)
            done += 1
            if done == stop:  # noqa: B023
                signals.note(15)

        monkeypatch.setattr(NetworkPack, "_step", counted)
        with pytest.raises(Preempted, match="SIGTERM: saved"):
            run.run(prepared(tmp_path / "stopped", learner, **changes))
        signals.forget()
        monkeypatch.setattr(NetworkPack, "_step", step)
    run.run(prepared(tmp_path / "stopped", learner, **changes))
    assert content(tmp_path / "whole") == content(tmp_path / "stopped")
    assert same_folders(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    "learner",
    [
        "cobweb",
        pytest.param("cobweb_nn_sparse", marks=pytest.mark.slow),
        pytest.param("nearest_mean", marks=pytest.mark.slow),
    ],
)
def test_concepts_go_on_from_the_task_before(tmp_path, monkeypatch, signal, learner):
    run.run(prepared(tmp_path / "whole", learner))
    tested = IncrementPack._tested

    def stopped(pack: IncrementPack, task: int) -> Any:
        if task == 0:
            signals.note(15)
        return tested(pack, task)

    monkeypatch.setattr(IncrementPack, "_tested", stopped)
    with pytest.raises(Preempted, match="saved after task 0"):
        run.run(prepared(tmp_path / "stopped", learner))
    with pytest.raises(Preempted, match="goes on from the begin of task 1"):
        run.run(prepared(tmp_path / "stopped", learner))  # it has come: the task is not begun
    signals.forget()
    found = run.run(prepared(tmp_path / "stopped", learner))
    assert content(tmp_path / "whole") == content(tmp_path / "stopped")
    assert same_folders(tmp_path / "whole", tmp_path / "stopped")
    assert found["panel"] == {} and len(found["accuracy_seen"]) == 2
    increments_plot(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


def test_the_nearest_mean_has_the_matrix_of_its_own_run():
    """Where all images are taken their draws do not matter."""
    settings = config("nearest_mean", increments={"validation": 0})
    found: list[Any] = []
    ConceptPack(settings, split(), 0).train(
        lambda kind, **values: found.append(values["row"]), lambda pack: None, lambda *args: None
    )
    options = ClassIncrementalConfig(
        data=Path(), learner="nearest_mean", train_per_class=None, test_per_class=None
    )
    matrix = run_learner(options, split(), NearestMean(36, 4)).matrix.accuracy
    assert found == [matrix[1, :1].tolist(), matrix[2].tolist()]


def test_results_are_what_the_records_give(tmp_path):
    settings: dict[str, Any] = {"seeds": 2, "increments": {"epochs": 1}}
    found = run.run(prepared(tmp_path, "convnet", **settings))
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert found["classes"] == [2, 4] and set(found["per_seed"]) == {"0", "1"}
    each = [found["per_seed"][seed] for seed in ("0", "1")]
    for name in ("accuracy_seen", "accuracy_new", "accuracy_validation"):
        assert found[name] == pytest.approx(np.mean([one[name] for one in each], 0).tolist())
    assert found["matrix"][0][1] is None
    kept = [one["matrix"][0][0] - one["matrix"][1][0] for one in each]
    assert found["summary"]["forgetting"] == pytest.approx(np.mean(kept))
    assert found["accuracy_seen"][1] == pytest.approx(np.mean(found["matrix"][1]))
    assert len(found["panel"]["dead"]) == 2 and found["audit"] == {"checks": 4, "nonzero": 0}
    assert all(sorted(sum(one["classes"], [])) == [0, 1, 2, 3] for one in each)
    assert "Accuracy on 4 classes at the end" in records.table(found)
    increments_plot(found, tmp_path / "a.png")
    assert run.run(prepared(tmp_path, "convnet", **settings)) == found  # shown again
    with pytest.raises(UserError, match="another config .stream.increments.epochs: 1 -> 2"):
        run.run(prepared(tmp_path, "convnet", seeds=2, increments={"epochs": 2}))


def test_a_checkpoint_of_another_network_is_none(tmp_path, monkeypatch):
    run.run(prepared(tmp_path, "resnet18", increments={"epochs": 1}))
    (tmp_path / "results.json").unlink()
    from sparsecl.streams.increments import training

    build = training.build_network

    def wider(learner: Any, *args: Any, **more: Any) -> Any:
        return build(LearnerConfig(kind="resnet18", width=5), *args, **more)

    monkeypatch.setattr(training, "build_network", wider)
    with pytest.raises(DataError, match="is of no tensor of this network"):
        run.run(prepared(tmp_path, "resnet18", increments={"epochs": 1}))


@pytest.mark.parametrize(
    ("learner", "changes", "text"),
    [
        ("convnet", {"methods": {"ewc": EwcConfig()}}, "methods.ewc: it does not run on class_inc"),
        ("cobweb", {"methods": CBP}, "methods.cbp: cobweb takes none"),
        ("cobweb", {"increments": {"reset": "head"}}, "reset=head: cobweb takes none only"),
        ("convnet", {"topology": TopologyConfig(kind="er_fixed")}, "topology.kind=er_fixed: conv"),
        ("convnet", {"methods": CBP, "increments": {"reset": "network"}}, "takes no methods"),
        ("resnet18", {"batch": 1}, "stream.batch=1: resnet18 normalises over a batch"),
    ],
)
def test_what_cannot_go_together_is_said_at_once(learner, changes, text):
    with pytest.raises(ValueError, match=text):
        config(learner, **changes)


def test_other_streams_take_no_convolutions():
    with pytest.raises(ValueError, match="learner.kind=convnet: stream.kind=permuted_mnist takes"):
        config("convnet", stream=type(config().stream)())


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason="no ../shared/mnist")
def test_a_small_convnet_knows_what_it_has_seen_of_mnist(tmp_path):
    path = ROOT / "launch/streams/class_incremental.yaml"
    small = ["seeds=1", f"stream.data={MNIST}", "stream.tasks=2", "stream.increments.epochs=3"]
    more = ["train_per_class=500", "test_per_class=100"]
    settings = configs.load(
        StreamRunConfig, path, [*small, *(f"stream.increments.{one}" for one in more)]
    )
    found = run.run(run.check(settings, tmp_path))
    assert found["classes"] == [2, 4] and min(found["accuracy_seen"]) > 0.8
