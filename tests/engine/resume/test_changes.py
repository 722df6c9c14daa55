"""What a run may change when it goes on from a checkpoint: by hand, without a model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsecl import config as configs
from sparsecl.engine.position import Position
from sparsecl.engine.resume.changes import Allowed, check_config, check_identity
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import DataError, UserError
from tests.launch.starter import tiny

FOLDER = Path("runs/x/checkpoints/step_16")
ALL = Allowed(config=True, data=True)


@pytest.fixture
def make(tmp_path):
    """A resolved config of the tiny run, with --set texts."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny(tmp_path)))
    return lambda *settings: configs.to_dict(configs.load(RunConfig, path, settings))


def identity(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    digests = {"data": "d" * 64, "tokenizer": "t" * 64, "topology": {"a": "1" * 64, "b": "2" * 64}}
    return {"config": config, **digests, "windows": "w" * 64, **changes}


def saved(config: dict[str, Any], phase: int = 1, phase_step: int = 4) -> dict[str, Any]:
    return {**identity(config), "position": asdict(Position(phase=phase, phase_step=phase_step))}


def test_nothing_changed(make):
    assert check_identity(FOLDER, saved(make()), identity(make())) == []


def test_the_windows_of_a_run_never_change(make):
    """Neither by a key, whatever is allowed, nor where another version has chosen them."""
    for setting in ("eval.tokens=7", "eval.end_tokens=2000000"):
        with pytest.raises(UserError, match="not stand on one text"):
            check_identity(FOLDER, saved(make()), identity(make(setting)), ALL)
    older = saved(make())
    del older["windows"]
    for before in (older, saved(make()) | {"windows": "v" * 64}):
        with pytest.raises(DataError, match="other pieces of the validation text.*--run_dir"):
            check_identity(FOLDER, before, identity(make()), ALL)


@pytest.mark.parametrize(
    "setting",
    [
        "name=other",
        "log.every=3",
        "checkpoint.keep=9",
        "data.workers=1",
        "parallel.tensor=2",
        "topology.storage=packed",
        "health.hang_seconds=7",
    ],
)
def test_what_changes_no_result_is_free(make, setting):
    assert check_identity(FOLDER, saved(make()), identity(make(setting))) == []


def test_a_change_is_shown_key_by_key_and_refused(make, capsys):
    with pytest.raises(UserError) as caught:
        check_identity(
            FOLDER, saved(make()), identity(make("optimizer.lr=0.01", "phases.steps=[12, 20]"))
        )
    assert caught.value.exit_code == 64
    line = str(caught.value)
    for text in ("optimizer.lr: 0.003 -> 0.01", "phases.steps: 12 -> (absent)", "--allow_config_"):
        assert text in line
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(str(FOLDER))
    assert sorted(printed[1:]) == [
        "  optimizer.lr: 0.003 -> 0.01",
        "  phases.steps.0: (absent) -> 12",
        "  phases.steps.1: (absent) -> 20",
        "  phases.steps: 12 -> (absent)",
    ]


def test_many_changes_are_cut_in_the_line_but_not_in_the_list(make, capsys):
    other = make("optimizer.betas=[0.1, 0.1]", "seed=1", "eval.every=1")
    other = {**other, "health": {**other["health"], "rollback": True, "max_rollbacks": 1}}
    other["optimizer"] |= {"lr": 1.0, "eps": 1.0}
    with pytest.raises(UserError, match="and 2 more"):
        check_config(FOLDER, make(), other)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 8


def test_a_change_that_is_allowed_is_a_note(make):
    notes = check_identity(
        FOLDER, saved(make()), identity(make("optimizer.lr=0.01", "seed=4")), Allowed(config=True)
    )
    assert notes == [
        "allowed: the config changed since step_16:",
        "  seed: 0 -> 4",
        "  optimizer.lr: 0.003 -> 0.01",
    ]


def test_a_key_that_is_younger_than_the_checkpoint_has_its_default(make):
    old = make()
    del old["health"], old["checkpoint"], old["optimizer"]["clip"]
    check_config(FOLDER, old, make())
    with pytest.raises(UserError, match="optimizer.clip: 1.0 -> 0.5"):
        check_config(FOLDER, old, make("optimizer.clip=0.5"))


def test_a_key_that_this_version_does_not_know_is_a_change(make):
    old = {**make(), "gone": 1}
    with pytest.raises(UserError, match=r"gone: 1 -> \(absent\)"):
        check_config(FOLDER, old, make())
    with pytest.raises(UserError, match="keys that this version does not know"):
        check_identity(FOLDER, saved(old), identity(make()), ALL)


@pytest.mark.fault("K6")
@pytest.mark.parametrize(
    ("setting", "kind", "text"),
    [
        ("model.width=64", UserError, "model was ModelShape(layers=2, width=32"),
        ("model.context=8", UserError, "context=16"),
        ("optimizer.kind=sgd", UserError, "optimizer.kind was adamw and is sgd"),
        ("methods.ewc={strength: 1}", UserError, "methods was [] and is ['ewc']"),
        ("batch.sequences=16", UserError, "batch.sequences was 8 and is 16"),
        ("topology.kind=dense", UserError, "topology.role was (False"),
        ("phases.order=[b, a]", DataError, "the phases were a, b and are b, a"),
        ("phases.order=[a, b, a]", DataError, "the phases were a, b and are a, b, a"),
        ("phases.joint=true", DataError, "the phases were a, b and are all domains"),
        ("phases.steps=[13, 12]", UserError, "phase 0 has 13 steps now, but 12 of its 12"),
        ("phases.steps=[12, 3]", UserError, "phase 1 has 3 steps now, but 4 of its 12"),
        ("data.domains.0.name=c", DataError, "a missing; c new"),
    ],
)
@pytest.mark.parametrize("allowed", [Allowed(), ALL])
def test_what_no_permission_covers(make, setting, kind, text, allowed):
    with pytest.raises(UserError) as caught:
        check_identity(FOLDER, saved(make()), identity(make(setting)), allowed)
    # Without permission it is the config that is wrong: 64, with the keys as they are written.
    is_config = allowed is not ALL and "data.domains" not in setting
    assert type(caught.value) is (UserError if is_config else kind)
    assert is_config == ("No option permits that" in str(caught.value))
    assert text in str(caught.value) and "another --run_dir" in str(caught.value)
    assert "--allow" not in str(caught.value)


@pytest.mark.parametrize("allowed", [Allowed(), ALL])
def test_masks_that_another_config_draws_are_refused_at_once(make, allowed):
    masks = {"a": "1" * 64, "b": "3" * 64}
    with pytest.raises(UserError, match="topology.density: ") as caught:
        changed = identity(make("topology.density=0.4"), topology=masks)
        check_identity(FOLDER, saved(make()), changed, allowed)
    assert caught.value.exit_code == (65 if allowed is ALL else 64)
    assert "topology digest of b" in str(caught.value) and "--allow" not in str(caught.value)


def test_what_has_ended_goes_on_with_no_other_config(make):
    with pytest.raises(UserError, match=r"optimizer\.lr: .* The run there has ended\.") as caught:
        check_config(FOLDER, make(), make("optimizer.lr=0.01"))
    assert "another --run_dir" in str(caught.value) and "--allow" not in str(caught.value)


@pytest.mark.fault("T8")
@pytest.mark.parametrize("names", [["a"], ["b", "a"], ["a", "a"], ["a", "b", "c"]])
@pytest.mark.parametrize("allowed", [Allowed(), ALL])
def test_other_domains_are_refused_with_and_without_permission(make, names, allowed):
    old, new = make(), make()
    new["data"]["domains"] = [{**new["data"]["domains"][0], "name": name} for name in names]
    with pytest.raises(DataError, match="data.domains are not those of this run"):
        check_identity(FOLDER, saved(old), identity(new), allowed)


def test_phases_to_come_may_be_longer(make):
    for phase, phase_step, steps in ((1, 4, "[12, 30]"), (1, 0, "[12, 1]"), (0, 4, "[4, 12]")):
        notes = check_identity(
            FOLDER,
            saved(make(), phase, phase_step),
            identity(make(f"phases.steps={steps}")),
            Allowed(config=True),
        )
        assert notes[0].startswith("allowed: ")


@pytest.mark.fault("T6", "T7")
@pytest.mark.parametrize("key", ["data", "tokenizer"])
def test_other_text_needs_its_own_permission(make, key):
    changed = identity(make(), **{key: "0" * 64})
    with pytest.raises(DataError, match=f"the {key} changed .*now 0000.*--allow_data_change"):
        check_identity(FOLDER, saved(make()), changed, Allowed(config=True))
    (note,) = check_identity(FOLDER, saved(make()), changed, Allowed(data=True))
    assert note.startswith(f"allowed: the {key} changed since the checkpoint")


@pytest.mark.fault("C6")
@pytest.mark.parametrize(
    "topology", [{"a": "1" * 64, "b": "0" * 64}, {"a": "1" * 64}, {}, {"c": "1" * 64}]
)
def test_another_topology_is_never_allowed(make, topology):
    with pytest.raises(DataError, match="topology digest of [abc] is "):
        check_identity(FOLDER, saved(make()), identity(make(), topology=topology), ALL)
