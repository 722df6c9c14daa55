"""Every law can be broken, and is then named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest import fixture, mark
from safetensors.torch import load_file, save_file

from sparsecl.checkpoint.frozen import frozen_weights
from sparsecl.checkpoint.laws import StateLaws, check_laws
from sparsecl.checkpoint.manifest import Manifest, ParameterEntry, read_manifest, write_manifest
from sparsecl.files import sha256_file
from sparsecl.model.config import ModelConfig
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerTopology
from tests.checkpoint import made


@fixture(scope="module")
def folder(tmp_path_factory):
    return made.save(tmp_path_factory.mktemp("checkpoints"))


NO_LAWS = StateLaws(
    problems=lambda manifest: iter(()),
    rewires=lambda manifest: False,
    not_negative=lambda manifest: (),
)


def problems(folder: Path) -> str:
    return "\n".join(check_laws(folder).problems)


def test_a_whole_checkpoint_has_no_problems(folder):
    verdict = check_laws(folder)
    live = sum(topology.num_live for topology in made.topologies().values())
    assert verdict.problems == ()
    assert verdict.about.startswith("step 5, tp size 1, 2 files, ")
    assert verdict.about.endswith(f"19 tensors, {live} of 64 masked weights live")


def poke(state: str, name: str, value: float):
    def change(tensors):
        live = tensors[state, name].reshape(-1).nonzero()[0]
        tensors[state, name].reshape(-1)[live] = value

    return change


def drop(state: str, name: str):
    return lambda tensors: tensors.pop((state, name))


@pytest.mark.fault("S3")
@mark.parametrize(
    ("change", "message"),
    [
        (poke("master", "a.up.weight", float("nan")), "master of a.up.weight has 1 values that"),
        (poke("exp_avg", "norm.weight", float("inf")), "exp_avg of norm.weight has 1 values that"),
        (poke("exp_avg_sq", "a.up.weight", -1e-9), "exp_avg_sq of a.up.weight has 1 negative"),
        (drop("master", "norm.weight"), "master of norm.weight is missing"),
        (drop("exp_avg", "norm.weight"), "exp_avg of norm.weight is missing"),
    ],
)
def test_wrong_numbers(tmp_path, change, message):
    tensors = made.matrices()
    change(tensors)
    assert message in problems(made.save(tmp_path, tensors))


def test_a_method_may_leave_parameters_out(tmp_path):
    tensors = made.matrices()
    del tensors["ewc.precision", "a.up.weight"]
    assert problems(made.save(tmp_path, tensors)) == ""


def test_padding_of_the_vocabulary_is_zero(tmp_path):
    state = {"config": {"tokenizer": {"kind": "sentencepiece", "vocab_size": 7, "model": None}}}
    tensors = made.matrices()
    tensors["master", "embedding.weight"][7] = 0.0
    tensors["exp_avg", "embedding.weight"][7] = 0.0
    tensors["ewc.precision", "embedding.weight"][7] = 0.0
    found = problems(made.save(tmp_path, tensors, state=state))
    where = "exp_avg_sq of embedding.weight has 4 values"
    assert found.endswith(f"{where} other than 0 in the padding, from row 7 on")
    assert "\n" not in found


def test_live_sets_are_those_of_the_run(tmp_path):
    digests = {topology.name: topology.digest for topology in made.topologies().values()}
    assert problems(made.save(tmp_path / "good", state={"topology": digests})) == ""
    other = {"topology": {**digests, "a.up": "0" * 64}}
    assert "topology digest of a.up.weight" in problems(made.save(tmp_path / "bad", state=other))
    moving = replace(NO_LAWS, rewires=lambda manifest: True)
    assert check_laws(tmp_path / "bad" / "step_5", state=moving).problems == ()


def test_states_of_methods_that_are_never_negative(tmp_path):
    tensors = made.matrices()
    tensors["ewc.precision", "b.up.weight"][0, 0] = -1.0
    folder = made.save(tmp_path, tensors)
    assert check_laws(folder, state=NO_LAWS).problems == ()
    laws = replace(NO_LAWS, not_negative=lambda manifest: ["ewc.precision"])
    (problem,) = check_laws(folder, state=laws).problems
    assert problem.endswith("ewc.precision of b.up.weight has 1 negative values")


def test_frozen_weights_have_no_moments(tmp_path, monkeypatch):
    tensors = made.matrices()
    learns = torch.zeros(4, 4, dtype=torch.bool)
    learns[1] = True
    frozen = {"b.up.weight": LayerTopology.from_mask("b.up", learns.numpy())}
    monkeypatch.setattr("sparsecl.checkpoint.laws.frozen_weights", lambda manifest: frozen)
    for state in ("exp_avg", "exp_avg_sq"):
        tensors[state, "b.up.weight"] *= learns
    assert problems(made.save(tmp_path / "good", tensors)) == ""
    tensors["exp_avg", "b.up.weight"][3, :2] = 1e-30
    found = problems(made.save(tmp_path / "bad", tensors))
    assert found.endswith("exp_avg of b.up.weight has 2 values other than 0 at frozen weights")


def test_which_weights_are_frozen():
    """Drawn again from the config in the checkpoint, if it gives what the run wrote down."""
    config = {
        "model": {"preset": None, "layers": 1, "width": 8, "heads": 2, "context": 4},
        "topology": {"density": 0.25, "role": "update"},
        "seed": 3,
    }
    shapes = layer_shapes(ModelConfig(**config["model"]).resolved())
    drawn = build_topologies(TopologyConfig(density=0.25, role="update"), shapes, seed=3)
    entries = {
        f"{shape.name}.weight": ParameterEntry((shape.out_features, shape.in_features), 0)
        for shape in shapes
    }

    def found(**changes):
        digests = {name: topology.digest for name, topology in drawn.items()}
        state = {"topology": digests, "config": {**config, **changes}}
        return frozen_weights(Manifest(1, 1, {}, entries, (), state))

    assert {name: topology.digest for name, topology in found().items()} == {
        f"{name}.weight": topology.digest for name, topology in drawn.items()
    }
    assert len(found()) == 6
    assert found(seed=4) == {}
    assert found(topology={"density": 0.25}) == {}
    assert found(topology={"density": 0.25, "role": "update", "unknown": 1}) == {}
    assert found(model={**config["model"], "width": 1 << 40}) == {}  # and nothing is allocated


def test_steps_must_agree(tmp_path):
    folder = made.save(tmp_path, state={"position": {"step": 4}})
    assert "the manifest is of step 5, its position of step 4" in problems(folder)
    assert "step 5" in problems(Path(shutil.move(folder, tmp_path / "step_6")))


def consistent(folder: Path) -> None:
    """Digests anew, as somebody would write them who knows the format."""
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        entry |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_manifest(folder, manifest)


def test_files_against_the_manifest(folder, tmp_path):
    def copy(name):
        return Path(shutil.copytree(folder, tmp_path / name / "step_5"))

    extra = copy("extra")
    shutil.copy(extra / made.FILE, extra / "rank_1.safetensors")
    assert "rank_1.safetensors" in problems(extra)
    (unnamed := copy("unnamed")).joinpath("notes.txt").write_text("")
    assert "notes.txt: the manifest does not name it" in problems(unnamed)
    flipped = copy("flipped")
    raw = bytearray((flipped / made.FILE).read_bytes())
    raw[-1] ^= 1
    (flipped / made.FILE).write_bytes(raw)
    assert "sha256 differs" in problems(flipped)

    changes = {
        "half": ("master/norm.weight", torch.zeros(3, dtype=torch.float16), "is F16, not F32"),
        "short": ("master/norm.weight", torch.zeros(2), "master/norm.weight has 2 elements"),
        "stray": ("master/other", torch.zeros(2), "master/other is in no piece"),
        "less": ("master/norm.weight", None, "master/norm.weight is missing"),
    }
    for name, (key, value, message) in changes.items():
        changed = copy(name)
        tensors = load_file(changed / made.FILE)
        tensors.pop(key, None)
        save_file({**tensors, **({} if value is None else {key: value})}, changed / made.FILE)
        consistent(changed)
        assert message in problems(changed), name


def test_one_tensor_is_held_at_a_time(folder, monkeypatch):
    counted = []

    def source(path):
        counted.append(made.Counted(path))
        counted[0].folder = path
        return counted[0]

    monkeypatch.setattr("sparsecl.checkpoint.laws.Reader", source)
    assert check_laws(folder).problems == ()
    assert (counted[0].num_read, counted[0].most) == (19, 1)
