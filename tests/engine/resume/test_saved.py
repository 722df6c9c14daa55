"""No lie about a run is believed: what the state of a checkpoint may say, and what it may not."""

import copy
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.checkpoint.manifest import Manifest, read_manifest, write_manifest
from sparsecl.checkpoint.published import PUBLISHED
from sparsecl.engine.resume.saved import STATE, check_lawful, state_problems
from sparsecl.errors import DataError
from sparsecl.programs import convert
from tests.launch.starter import Starter

METHODS = {"replay": {"share": 0.25, "sequences": 16}, "ewc": {"strength": 1.0, "sequences": 2}}

# What only the list of published manifests can tell: numbers that no other part of a checkpoint
# knows. Anything else must be found by a law.
NOBODY_KNOWS = (
    *("best_loss", "num_bad", "seconds", "recent_losses", "plasticity", "bad_steps", "rollbacks"),
    "num_seen",
    *("data_shift", "audit_checks", "scalars_bytes", "scalars_sha256", "matrix", "data"),
    *(
        "tokenizer",
        "topology",
        "config",
        "names",
        "num_replayed",
        "by_phase",
        "windows",
        "tensor",
        "backends",
    ),
)


@pytest.fixture(scope="module")
def saved(server, tmp_path_factory, shared_cache) -> Path:
    """A checkpoint in the second phase of a run with methods."""
    starter = Starter(tmp_path_factory.mktemp("saved"), shared_cache)
    starter.config(methods=METHODS)
    done = starter.run("--run_dir", str(starter.folder / "run"), "--inject", "kill@step:19")
    assert done.code == -9, done.err
    return starter.folder / "run" / "checkpoints" / "step_16"


@pytest.fixture(scope="module")
def manifest(saved) -> Manifest:
    return read_manifest(saved)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every number, text, null and empty container; of long lists the first two."""
    below = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, inner in below:
        if isinstance(inner, dict | list) and inner:
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key)


def told(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of the state in which one leaf has another value; ... = it is missing."""
    lie = copy.deepcopy(state)
    at = lie
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return lie


def lies(state: dict[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    """For every leaf one value of a wrong type, one out of range, one that is plausible, and none.

    The config is a run's own: a change in it is compared with the run's (engine/resume/changes.py).
    """
    for path in leaves({key: value for key, value in state.items() if key != "config"}):
        at = state
        for key in path:
            at = at[key]
        wrong: list[Any] = [[], {}, "x", True] if not isinstance(at, bool) else [1, None, False]
        if isinstance(at, int | float) and not isinstance(at, bool):
            wrong = ["7", -5, True, at + int(rng.integers(1, 5)), 2**70, [at]]
        elif isinstance(at, str):
            wrong = [at[::-1], "", 7, None]
        if not isinstance(path[-1], int):
            wrong.append(...)
        for value in wrong:
            if value != at or type(value) is not type(at):
                yield f"{'.'.join(map(str, path))} = {value!r:.20}", told(state, path, value)
    yield "an extra key", {**state, "more": 1}
    yield "an extra counter", told(state, ("optimizer", "counters", "micro_steps"), 3)


def write(folder: Path, state: dict[str, Any]) -> None:
    found = read_manifest(folder)
    fields = {name: getattr(found, name) for name in ("step", "tp_size", "files", "parameters")}
    write_manifest(folder, Manifest(**fields, pieces=found.pieces, state=state))


def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved.parents[1], tmp_path / "run")) / "checkpoints" / saved.name


def test_a_run_s_own_checkpoints_are_lawful(saved):
    for folder in saved.parent.glob("step_*"):
        check_lawful(folder)


@pytest.mark.fault("S1", "S2")
def test_no_lie_is_believed(saved, manifest, tmp_path):
    """Each of some hundred lies, its digests computed anew, is named by a law or by the list."""
    folder = copied(saved, tmp_path)
    found = list(lies(manifest.state, np.random.default_rng(0)))
    assert len(found) > 300
    unseen = 0
    for text, state in found:
        problems = list(state_problems(Manifest(**{**vars(manifest), "state": state})))
        assert not any("\n" in problem for problem in problems), text
        if problems:
            continue
        assert any(key in text for key in NOBODY_KNOWS), text
        unseen += 1
        write(folder, state)
        with pytest.raises(DataError, match=PUBLISHED if "topology" not in text else "digest"):
            check_lawful(folder)
    assert 0 < unseen < 0.25 * len(found), (unseen, len(found))


@pytest.mark.fault("S1", "S2")
@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("observers", "turnover", "gone"), 2, "turnover: 2 lives of 0 steps"),
        (("position", "step"), -5, "state.position.step: Input should be greater than or equal"),
        (("position", "step"), 15, "state.position.step: 15, the manifest is of step 16"),
        (("position", "phase"), 9, "state.position.phase: 9, the run has 2 phases"),
        (("position", "phase_step"), 12, "phase_step: 12, the phase has 12 steps"),
        (("position", "phase_step"), 3, "step 3 of phase 1 is step 15 of the run"),
        (("position", "started"), False, "saved after its first evaluation"),
        (("position", "data_shift"), 3, "data_shift: 3 without a rollback"),
        (("observers", "health", "recent_losses"), [1.0] * 51, "at most 50 items"),
        (("observers", "health", "bad_steps"), 17, "bad_steps: 17 of 16 steps"),
        (("observers", "early_end", "num_bad"), 17, "early_end.num_bad: 17"),
        (("observers", "plasticity", "p"), -0.5, "plasticity.p: -0.5 in"),
        (("observers", "drift", "phases"), [1], "drift.phases: [1], the last ones so far are [0]"),
        (("observers", "drift", "phases"), [0, 0], "drift.phases: [0, 0], the last ones so far"),
        (("observers", "drift", "phases"), ..., "state.observers.drift.phases: it is missing"),
        (("observers", "clock", "train_seconds"), -1.0, "greater than or equal to 0"),
        (("optimizer", "group_step"), 4, "group_step: 4, but 16 steps were applied"),
        (("optimizer", "moments"), ["exp_avg"], "state.optimizer.moments"),
        (("optimizer", "counters", "skipped_steps"), 17, "17 of them skipped"),
        (("optimizer", "counters", "global_samples"), 1, "1 in 16 steps of 8"),
        (("optimizer", "scaler", "dynamic"), True, "scaler.dynamic: Extra inputs"),
        (("matrix", "loss"), [[1.0, 1.0]], "state.matrix.loss: 1 rows after 1 phases"),
        (("matrix", "loss"), [[1.0], [1.0]], "a row is not of 2 domains"),
        (("backends", "layers.9.mlp.up"), "dense", "state.backends: layers.9.mlp.up is no matrix"),
        (("topology", "layers.0.mlp.up"), ..., "layers.0.mlp.up is no matrix on a topology, or"),
        (("methods", "ewc"), ..., "state.methods: ewc is missing"),
        (("methods", "other"), {}, "state.methods: other is no method"),
        (("methods", "replay", "num_seen"), 5, "replay.names: 16 of 5 seen"),
        (("methods", "replay", "names"), [[0, 1.5]] * 16, "[0, 1.5] is no [phase, number]"),
        (("config", "model", "width"), 64, "embedding.weight is ParameterEntry"),
        (("config", "phases"), 5, "state.config: it is no run config"),
    ],
)
def test_what_a_law_says(manifest, path, value, says):
    state = told(manifest.state, path, value) if value is ... else copy.deepcopy(manifest.state)
    at = state
    for key in path[:-1]:
        at = at[key]
    if value is not ...:
        at[path[-1]] = value
    lie = Manifest(**{**vars(manifest), "state": state})
    assert says in "\n".join(state_problems(lie))


def test_what_is_kept_of_earlier_models_is_looked_at(manifest):
    arrays = {
        "drift.0.tokens": torch.zeros(2, 16, dtype=torch.int32),
        "drift.0.ids": torch.ones(2, 16, 8, dtype=torch.int32),
        "drift.0.log_probs": -torch.ones(2, 16, 8),
    }

    def problems(state: dict[str, Any], found: dict[str, torch.Tensor]) -> str:
        lie = Manifest(**{**vars(manifest), "state": state})
        reader: Any = SimpleNamespace(manifest=lie, topologies={})
        return "\n".join([*state_problems(lie), *STATE.arrays(reader, found)])

    assert problems(manifest.state, arrays) == ""
    damaged = {**arrays, "drift.0.ids": arrays["drift.0.ids"] + 3000}
    assert "observers: drift.0.ids: no ids of" in problems(manifest.state, damaged)
    assert "observers: drift.0.ids is missing" in problems(manifest.state, {})
    # A checkpoint of an earlier version has neither.
    earlier = told(manifest.state, ("observers", "drift"), ...)
    assert problems(earlier, {}) == ""
    assert "observers: drift.0.ids is not known" in problems(earlier, arrays)


def test_numbers_of_a_json_that_are_none(manifest):
    for text in ("NaN", "Infinity", "1e999"):
        state = told(manifest.state, ("observers", "clock", "train_seconds"), json.loads(text))
        lie = Manifest(**{**vars(manifest), "state": state})
        assert "finite" in "\n".join(state_problems(lie)), text
    assert math.isfinite(manifest.state["observers"]["clock"]["train_seconds"])


def test_verify_says_the_same(saved, manifest, tmp_path, capsys):
    folder = copied(saved, tmp_path)
    assert convert.main(["verify", str(folder)]) == 0
    for state in (
        told(manifest.state, ("position", "phase"), 9),
        told(manifest.state, ("optimizer", "counters", "global_steps"), 3),
        told(manifest.state, ("observers", "clock", "train_seconds"), 9.0),
    ):
        write(folder, state)
        capsys.readouterr()
        with pytest.raises(DataError) as caught:
            check_lawful(folder)
        assert convert.main(["verify", str(folder)]) == 65
        assert str(caught.value).removeprefix(f"{folder}: ") in capsys.readouterr().out


def test_a_damaged_list_vouches_for_nothing(saved, manifest, tmp_path):
    folder = copied(saved, tmp_path)
    path = folder.parent / PUBLISHED
    assert path.read_bytes().count(b"\n") >= 2
    for content in (b"", b"\xff\n", b"[1]\n", path.read_bytes()[:30], b'{"step": 16}\n'):
        path.write_bytes(content)
        if content == b'{"step": 16}\n':
            with pytest.raises(DataError, match=PUBLISHED):
                check_lawful(folder)
        else:
            check_lawful(folder)
    path.unlink()
    check_lawful(folder)
    write(folder, told(manifest.state, ("audit_checks",), 9))
    check_lawful(folder)  # alone, it is judged by the laws
