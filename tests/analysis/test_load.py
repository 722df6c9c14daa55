"""A checkpoint becomes the model that it is of, and a run's domains the rows to look at."""

import shutil

import pytest
import torch

from sparsecl.analysis.load import (
    _trained_last,
    held_out_rows,
    load_model,
    locate,
    prepare_domains,
    topologies_of,
)
from sparsecl.checkpoint.find import is_checkpoint, run_above
from sparsecl.data.batches import evaluation_windows, whole_windows
from sparsecl.errors import DataError, MissingInputError
from sparsecl.model.build import build_gpt
from sparsecl.programs import convert
from sparsecl.sparse.registry import sparse_parameters
from tests.analysis import made_run
from tests.distributed import cases


def reload(run, config):
    vocab_size = made_run.domains_of(config).tokenizer.vocab_size
    checkpoint = locate(run).checkpoint
    return load_model(
        checkpoint,
        config.model,
        config.topology,
        vocab_size=vocab_size,
        seed=config.seed,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(
    "topology",
    [
        "{density: 0.25}",
        "{density: 0.25, storage: packed, backend: auto, keep_expansion: true}",
        "{kind: dense}",
        "{density: 0.25, role: update}",
    ],
)
def test_the_model_comes_back_bit_for_bit(tmp_path, shared_cache, topology):
    config = made_run.load(shared_cache, f"topology={topology}")
    plain = made_run.load(shared_cache, f"topology={topology}", "topology.backend=dense")
    made = made_run.make_run(tmp_path, config, model=made_run.make_model(plain, steps=3))
    found = reload(tmp_path, config)
    assert found.state_dict().keys() == made.state_dict().keys()
    for name, value in made.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    digests = [{n: t.digest for n, t in topologies_of(m).items()} for m in (found, made)]
    assert digests[0] == digests[1]


def test_masks_are_those_of_the_checkpoint(tmp_path, shared_cache):
    config = made_run.load(shared_cache)
    moved = made_run.make_model(made_run.load(shared_cache, "seed=9"))
    made_run.make_run(tmp_path, config, model=moved)
    masks = {name: topology.digest for name, topology in topologies_of(moved).items()}
    drawn = made_run.make_model(config)
    assert {n: t.digest for n, t in topologies_of(reload(tmp_path, config)).items()} == masks
    assert {n: t.digest for n, t in topologies_of(drawn).items()} != masks


@pytest.mark.dist
def test_the_engines_checkpoint_scores_as_in_training(pool, tmp_path, shared_cache):
    overrides = ("topology.storage=packed", "parallel.tensor=2", "phases.steps=4", "seed=2")
    cache, folder = str(shared_cache), tmp_path / "checkpoints"
    trained = pool.run(cases.train, 2, cache, "zero2", overrides, str(folder))[0]
    (tmp_path / "config.yaml").write_text("name: tiny\n")
    config = cases.load(cache, overrides)
    model = reload(tmp_path, config)
    data = prepare_domains(
        locate(tmp_path).checkpoint, config.data, config.tokenizer, context=16, seed=2
    )
    windows = evaluation_windows(data.domains[0].validation, context=16)
    inputs, targets = (torch.from_numpy(part) for part in windows.rows(0, len(windows)))
    loss = model(inputs, targets)[0].double().sum().item()
    last = trained["evals"][-1]
    assert last["num_tokens"] == 400
    assert loss == pytest.approx(last["loss_sum"], rel=1e-6)
    assert all(entry.layer.packed for entry in sparse_parameters(model).values())


def test_padding_of_another_layout_is_cut(tmp_path, shared_cache, monkeypatch):
    """257 byte tokens are padded to 384 rows on one rank, to 768 where tp made the multiple so."""
    config = made_run.load(shared_cache)
    with monkeypatch.context() as patch:
        patch.setattr("sparsecl.model.vocabulary.padded_vocabulary", lambda size, tp: 768)
        wide = made_run.make_run(tmp_path, config)
    found = reload(tmp_path, config)
    assert (len(wide.embedding.weight), len(found.embedding.weight)) == (768, 384)
    assert torch.equal(found.embedding.weight[:257], wide.embedding.weight[:257])
    assert not found.embedding.weight[257:].any()


def test_rows_of_every_domain(shared_cache):
    data = made_run.domains_of(made_run.load(shared_cache))
    rows = held_out_rows(data, context=16, sequences=4)
    assert {name: found.shape for name, found in rows.items()} == {"a": (4, 17), "b": (4, 17)}
    text = whole_windows(data.domains[1].validation, context=16, count=4)
    assert (rows["b"] == text).all() and (rows["a"] != rows["b"]).any()


def test_where_a_checkpoint_is(tmp_path, shared_cache):
    config = made_run.load(shared_cache)
    run = tmp_path / "run"
    with pytest.raises(MissingInputError, match="run: no such run folder or checkpoint folder"):
        locate(run)
    run.mkdir()
    with pytest.raises(MissingInputError, match="run: not a run folder, it has no config.yaml"):
        locate(run)
    for step in (3, 12):
        made_run.make_run(run, config, step=step)
    assert (locate(run).checkpoint.name, locate(run).newest) == ("step_12", True)
    older = run / "checkpoints" / "step_3"
    assert (locate(older).run, locate(older).newest) == (run, False)
    file = run / "checkpoints" / "step_12" / "rank_0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert locate(run).checkpoint == older  # the newest that is whole
    with pytest.raises(DataError, match="bytes, manifest says"):
        locate(file.parent)
    (older / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="run: no checkpoint is valid, passed over"):
        locate(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(MissingInputError, match="run: has no checkpoint; train it first"):
        locate(run)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.layers=1", "its parameters are not those of this config: layers.1"),
        ("model.context=8", r"positions.weight is \[16, 32\], this config has \[8, 32\]"),
        ("model.mlp_ratio=2", "holds no topology of layers.0.mlp.up for this config"),
    ],
)
def test_another_model_is_refused(tmp_path, shared_cache, override, message):
    made_run.make_run(tmp_path, made_run.load(shared_cache))
    with pytest.raises(DataError, match=message):
        reload(tmp_path, made_run.load(shared_cache, override))


def test_other_text_is_refused(tmp_path, shared_cache):
    config = made_run.load(shared_cache)
    made_run.make_run(tmp_path, config)
    changed = made_run.load(shared_cache, "data.domains.1.synthetic.seed=5")
    with pytest.raises(DataError, match="step_3: the data changed since the checkpoint"):
        prepare_domains(
            locate(tmp_path).checkpoint, changed.data, changed.tokenizer, context=16, seed=0
        )


def test_the_model_is_built_alone(shared_cache):
    """No process group is needed: a checkpoint is global."""
    config = made_run.load(shared_cache)
    model = build_gpt(config.model, config.topology, vocab_size=257, seed=0)
    assert all(entry.layer.tp_size == 1 for entry in sparse_parameters(model).values())


def test_a_checkpoint_and_its_run_are_found_through_links(tmp_path, shared_cache):
    made_run.make_run(tmp_path / "run", made_run.load(shared_cache))
    steps = tmp_path / "run" / "checkpoints"
    (tmp_path / "best").symlink_to(steps / "step_3")  # a name for a checkpoint of a run
    (steps / "step_3").rename(tmp_path / "3af1")  # a run whose checkpoints lie elsewhere
    (steps / "step_3").symlink_to(tmp_path / "3af1")
    found = locate(steps / "step_3")
    assert (found.run, found.newest) == (tmp_path / "run", False)
    (tmp_path / "3af1" / "manifest.json").unlink()
    assert is_checkpoint(steps / "step_3") and run_above(steps / "step_3") == tmp_path / "run"
    (steps / "step_3").unlink()
    (tmp_path / "3af1").rename(steps / "step_3")
    assert is_checkpoint(tmp_path / "best") and run_above(tmp_path / "best") == tmp_path / "run"


def test_columns_come_back_and_the_one_trained_last_is_open(tmp_path, shared_cache, capsys):
    config = made_run.load(shared_cache, "methods.progressive={rank: 3}")
    made = made_run.make_run(tmp_path / "run", config)
    found = load_model(
        locate(tmp_path / "run").checkpoint,
        config.model,
        config.topology,
        vocab_size=257,
        seed=config.seed,
        device=torch.device("cpu"),
        shape=config.shape,
    )
    for (name, value), (_, other) in zip(
        found.named_parameters(), made.named_parameters(), strict=True
    ):
        assert value.equal(other), name
    assert found.columns is not None and found.columns.open == 0
    # At a border the next phase has not begun.
    places = [(0, 0), (0, 3), (1, 0), (1, 1), (2, 0)]
    assert [
        _trained_last({"position": {"phase": phase, "phase_step": step}}) for phase, step in places
    ] == [0, 0, 0, 1, 1]
    assert convert.main(["hf-export", str(tmp_path / "run"), str(tmp_path / "out")]) != 0
    assert "2 columns that hear each other" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
