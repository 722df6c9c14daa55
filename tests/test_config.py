"""The config reader: values, round trips, and the one line that each mistake gets."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from sparsecl import config
from sparsecl.errors import DataError, MissingInputError, UserError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Which weights may live."""

    kind: Literal["dense", "er_fixed", "brf"] = "dense"
    """How the edges are drawn."""

    density: float = 1.0
    """Live weights / all weights, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ValueError(f"density must be in (0, 1], got {self.density}")


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One source of text."""

    name: str
    train: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Data:
    """The stream."""

    domains: tuple[Domain, ...] = (Domain(name="code"), Domain(name="math"))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run config in small."""

    name: str = "demo"
    """Free text; names the run folder."""

    seed: int = 0
    steps: int | tuple[int, ...] = 100
    lr: float = 3e-4
    """Peak learning rate."""

    betas: tuple[float, float] = (0.9, 0.95)
    tied: bool = True
    limit: float | None = None
    cache: Path | None = None
    mode: Literal["auto", "off"] | int = "auto"
    weights: dict[str, float] = field(default_factory=dict)
    topology: Topology = Topology()
    teacher: Topology | None = None
    data: Data = Data()

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit > self.lr:
            raise ValueError("limit must not be above lr")
        if self.seed == 13:
            raise ValueError("the run is cursed")


@dataclass(frozen=True)
class Named:
    """A config with a field that has no default."""

    name: str


def load(tmp_path: Path, text: str, *overrides: str) -> Run:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(Run, path, overrides)


def message(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{tmp_path}/", "")


VALUES = [
    ("lr: 3e-4", "lr", 3e-4),
    ("lr: 3.0e-4", "lr", 3e-4),
    ("lr: 1", "lr", 1.0),
    ("lr: 1_000.5", "lr", 1000.5),
    ("seed: 1_000", "seed", 1000),
    ("seed: -4", "seed", -4),
    ("steps: 5", "steps", 5),
    ("steps: [1, 2]", "steps", (1, 2)),
    ("betas: [0, 1e-1]", "betas", (0.0, 0.1)),
    ("tied: no", "tied", False),
    ("limit: null", "limit", None),
    ("limit: 1e-5", "limit", 1e-5),
    ("cache: some/where", "cache", Path("some/where")),
    ("mode: off", "mode", "off"),  # a boolean in YAML 1.1
    ("mode: 3", "mode", 3),
    ("name: 007", "name", "007"),
    ("name: 2024-01-01", "name", "2024-01-01"),
    ("name: ${HOME} `id` $(id)", "name", "${HOME} `id` $(id)"),
    ("weights: {code: 1, math: 0.5}", "weights", {"code": 1.0, "math": 0.5}),
    ("topology: {density: 0.1}", "topology", Topology(density=0.1)),
    ("teacher: {kind: brf}", "teacher", Topology(kind="brf")),
    (
        "data: {domains: [{name: a, train: [x, y]}]}",
        "data",
        Data(domains=(Domain(name="a", train=("x", "y")),)),
    ),
    ("{}", "name", "demo"),
]


@pytest.mark.parametrize(("text", "name", "expected"), VALUES)
def test_a_value_is_read_as_its_annotation_says(tmp_path, text, name, expected):
    value = getattr(load(tmp_path, text), name)
    assert value == expected
    assert type(value) is type(expected)


MISTAKES = [
    (
        "seed: 0\ntopology:\n  densty: 0.1",
        "run.yaml:3: topology.densty: unknown key; did you mean density?",
    ),
    ("density: 0.1", "run.yaml:1: density: unknown key; did you mean topology.density?"),
    ("teacher: {zzz: 0.1}", "run.yaml:1: teacher.zzz: unknown key; known here: kind, density"),
    (
        "<<: {seed: 1}",
        "run.yaml:1: <<: unknown key; known here: name, seed, steps, lr, betas, tied, limit, "
        "cache, mode, weights, topology, teacher, data",
    ),
    (
        "data: {domains: [{nam: a}]}",
        "run.yaml:1: data.domains.0.nam: unknown key; did you mean name?",
    ),
    ("data:\n  domains:\n    - train: [x]", "run.yaml:3: data.domains.0.name: is required"),
    (
        "topology: {density: 10%}",
        "run.yaml:1: topology.density: expected a number, got 10% (10% is written 0.1)",
    ),
    (
        "topology: {density: '10 %'}",
        "run.yaml:1: topology.density: expected a number, got '10 %' (10 % is written 0.1)",
    ),
    (
        "topology: {density: .nan}",
        "run.yaml:1: topology.density: must be a finite number, got .nan",
    ),
    ("lr: -.inf", "run.yaml:1: lr: must be a finite number, got -.inf"),
    ("lr: inf", "run.yaml:1: lr: must be a finite number, got inf"),
    ("lr: 1e999", "run.yaml:1: lr: must be a finite number, got 1e999"),
    ("lr: '0.1'", "run.yaml:1: lr: expected a number, got '0.1' (remove the quotes)"),
    ("lr: true", "run.yaml:1: lr: expected a number, got true"),
    ("lr: 1:30", "run.yaml:1: lr: expected a number, got 1:30"),
    ("lr:", "run.yaml:1: lr: expected a number, got nothing"),
    ("seed: yes", "run.yaml:1: seed: expected a whole number, got yes"),
    ("seed: 1.5", "run.yaml:1: seed: expected a whole number, got 1.5"),
    ("seed: 1e9", "run.yaml:1: seed: expected a whole number, got 1e9 (write 1000000000)"),
    (
        "seed: 010",
        "run.yaml:1: seed: expected a whole number, got 010 (a leading zero means octal in "
        "YAML; write 10)",
    ),
    ("seed: e100", "run.yaml:1: seed: expected a whole number, got e100"),
    ("lr: ._", "run.yaml:1: lr: expected a number, got ._"),
    ("seed: 0x10", "run.yaml:1: seed: expected a whole number, got 0x10"),
    ("seed: [1]", "run.yaml:1: seed: expected a whole number, got a list"),
    ("tied: 1", "run.yaml:1: tied: expected true or false, got 1"),
    ("tied: !!bool banana", "run.yaml:1: tied: expected true or false, got banana"),
    ("name: null", "run.yaml:1: name: expected text, got null"),
    ("name: {a: 1}", "run.yaml:1: name: expected text, got keys and values"),
    ("limit: x", "run.yaml:1: limit: expected a number or null, got x"),
    ("steps: [1, a]", "run.yaml:1: steps.1: expected a whole number, got a"),
    ("steps: a", "run.yaml:1: steps: expected a list of a whole number or a whole number, got a"),
    ("betas: [1]", "run.yaml:1: betas: expected 2 entries, got 1"),
    ("betas: 0.9", "run.yaml:1: betas: expected a list of 2: a number, a number, got 0.9"),
    ("weights: {a: b}", "run.yaml:1: weights.a: expected a number, got b"),
    (
        "mode: of",
        "run.yaml:1: mode: expected one of auto, off or a whole number, got of; did you mean off?",
    ),
    ("topology: er_fixed", "run.yaml:1: topology: expected keys (kind, density), got er_fixed"),
    (
        "topology: {kind: er_fixd}",
        "run.yaml:1: topology.kind: expected one of dense, er_fixed, brf, got er_fixd; "
        "did you mean er_fixed?",
    ),
    ("topology:\n  density: 1.5", "run.yaml:2: topology.density must be in (0, 1], got 1.5"),
    ("seed: 1\nlimit: 1", "run.yaml:2: limit must not be above lr"),
    ("\nseed: 13", "run.yaml:2: the run is cursed"),
    (
        "data: {domains: {0: {name: a}}}",
        "run.yaml:1: data.domains: expected a list of keys (name, train), got keys and values",
    ),
    ("", "run.yaml: is empty; write at least one key, or {}"),
    ("# only a comment\n", "run.yaml: is empty; write at least one key, or {}"),
    ("- a\n- b", "run.yaml:1: expected keys and values, got a list"),
    ("hello", "run.yaml:1: expected keys and values, got hello"),
    ("seed: 1\nseed: 2", "run.yaml:2:1: duplicate key seed (first in line 1)"),
    ("data:\n  x: 1\n  x: 2", "run.yaml:3:3: duplicate key x (first in line 2)"),
    ("[1, 2]: x", "run.yaml:1:1: a key must be plain text"),
    (
        "seed: [1, 2",
        "run.yaml:1:12: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
    ),
    (
        "a: 1\n---\nb: 2",
        "run.yaml:2:1: expected a single document in the stream, but found another document",
    ),
    (
        "topology:\n\tdensity: 1",
        "run.yaml:2:1: while scanning for the next token, found character '\\t' that "
        "cannot start any token (a tab; YAML indents with spaces)",
    ),
    ("a: &x [1]\nb: *x", "run.yaml:2:4: aliases (*name) are not supported here"),
    (
        "name: !!python/object/apply:os.system ['touch pwned']",
        "run.yaml:1:7: the tag !!python/object/apply:os.system is not allowed",
    ),
    ("name: !custom x", "run.yaml:1:7: the tag !custom is not allowed"),
    ("seed: " + "[" * 1000, "run.yaml:1:46: nested deeper than 40 levels"),
    ("name: a\0b", "run.yaml:1:8: the character '\\x00' is not allowed in YAML"),
    (
        "\ufeffname: a",
        "run.yaml:1:1: starts with a byte order mark (BOM); save it as UTF-8 without one",
    ),
    ("seed: " + "x" * 99, f"run.yaml:1: seed: expected a whole number, got {'x' * 57}..."),
    (
        '"a\\nb": 1',
        "run.yaml:1: a\\nb: unknown key; known here: name, seed, steps, lr, betas, tied, limit, "
        "cache, mode, weights, topology, teacher, data",
    ),
]


@pytest.mark.fault("K1", "K2", "K3")
@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_a_mistake_gets_one_line(tmp_path, text, expected):
    assert message(tmp_path, text) == expected


OVERRIDES = [
    ("topology.density=0.1", lambda run: run.topology == Topology(kind="brf", density=0.1)),
    ("topology={density: 0.1}", lambda run: run.topology == Topology(density=0.1)),
    ("lr=1e-3", lambda run: run.lr == 1e-3),
    ("steps=[1, 2]", lambda run: run.steps == (1, 2)),
    ("name=a=b", lambda run: run.name == "a=b"),
    ("teacher.density=0.5", lambda run: run.teacher == Topology(density=0.5)),
    ("data.domains.1.name=law", lambda run: [d.name for d in run.data.domains] == ["code", "law"]),
    ("weights.code=2", lambda run: run.weights == {"code": 2.0}),
    ("limit=null", lambda run: run.limit is None),
]


@pytest.mark.parametrize(("text", "holds"), OVERRIDES)
def test_an_override_lies_over_the_file(tmp_path, text, holds):
    assert holds(load(tmp_path, "topology: {kind: brf, density: 0.5}\nteacher:\n", text))


def test_overrides_reach_list_entries_of_the_file_and_the_last_one_wins(tmp_path):
    text = "data: {domains: [{name: a}, {name: b, train: [x]}]}"
    run = load(tmp_path, text, "data.domains.1.name=c", "data.domains.1.name=d", "seed=4")
    assert run.data.domains == (Domain(name="a"), Domain(name="d", train=("x",)))
    assert run.seed == 4


BAD_OVERRIDES = [
    ("topology.density=1.5", "topology.density must be in (0, 1], got 1.5"),
    ("topology.density=10%", "topology.density: expected a number, got 10% (10% is written 0.1)"),
    ("topology.densty=0.1", "topology.densty: unknown key; did you mean density?"),
    ("topolgy.density=0.1", "topolgy: unknown key; did you mean topology?"),
    ("seed", "write it as key=value, for example --set seed=1"),
    (".seed=1", "write it as key=value, for example --set seed=1"),
    ("seed=", 'seed has no value; write null for none, "" for empty text'),
    ("seed=[1", "while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
    ("seed.x=1", "seed is 3, it has no keys"),
    ("steps.7=1", "steps has 1 entries, counted from 0; there is no 7"),
    ("data.domains.2.name=a", "data.domains: has 2 entries, counted from 0; there is no 2"),
    ("name=!!python/name:os.system x", "the tag !!python/name:os.system is not allowed"),
]


@pytest.mark.parametrize(("text", "expected"), BAD_OVERRIDES)
def test_a_bad_override_is_named_as_it_was_written(tmp_path, text, expected):
    assert message(tmp_path, "seed: 3\nsteps: [1]", text) == f"--set {text}: {expected}"


def test_an_override_with_a_line_break_stays_one_line(tmp_path):
    assert message(tmp_path, "seed: 3", "seed=a\nb") == (
        "--set seed=a\\nb: seed: expected a whole number, got a b"
    )


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message(tmp_path, "name: !!python/object/apply:os.system ['touch pwned']")
    assert not (tmp_path / "pwned").exists()


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(MissingInputError, match=r"absent\.yaml: no such file$") as caught:
        config.load(Run, tmp_path / "absent.yaml")
    assert caught.value.exit_code == 66
    with pytest.raises(MissingInputError, match=r"cannot be read \(is a folder\)$"):
        config.load(Run, tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"byte 9 \(0xe9\) is not UTF-8"):
        config.load(Run, tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(UserError, match="larger than 1048576 bytes"):
        config.load(Run, tmp_path / "big.yaml")


def test_defaults_alone():
    assert config.load(Run, None) == Run()
    assert config.load(Run, None, ["seed=2"]) == Run(seed=2)
    with pytest.raises(UserError, match=r"^defaults: name: is required$"):
        config.load(Named, None)


ODD = Run(
    name="no: # 'x' \u00e9\n\t\"",
    lr=1e-8,
    steps=(1, 2),
    limit=-0.5,
    cache=Path("a b"),
    weights={"true": 1.0, "a.b": 2.5e300},
    teacher=Topology(kind="brf", density=1 / 3),
    data=Data(domains=(Domain(name="null", train=("1", "", "~")),)),
)


@pytest.mark.parametrize("run", [Run(), ODD])
def test_dump_loads_back_to_an_equal_instance(tmp_path, run):
    path = tmp_path / "dump.yaml"
    path.write_text(config.dump(run), encoding="utf-8")
    again = config.load(Run, path)
    assert again == run
    assert config.digest(again) == config.digest(run)


def test_digest_follows_the_value_and_nothing_else():
    assert config.digest(Run(lr=1)) == config.digest(Run(lr=1.0))
    digests = {config.digest(run) for run in (Run(), Run(seed=1), Run(lr=0.1), ODD)}
    assert len(digests) == 4
    assert config.digest(Named("a")) == hashlib.sha256(b'{"name": "a"}').hexdigest()


def test_differences_name_the_leaf_and_both_values():
    old = config.to_dict(Run())
    new = config.to_dict(dataclasses.replace(Run(), lr=0.1, steps=(7,), weights={"a": 1.0}))
    assert config.differences(old, old) == []
    assert config.differences(old, new) == [
        "steps: 100 -> (absent)",
        "lr: 0.0003 -> 0.1",
        "weights: {} -> (absent)",
        "steps.0: (absent) -> 7",
        "weights.a: (absent) -> 1.0",
    ]


def test_a_block_in_the_place_of_null_is_told_by_its_leaves():
    off, on = {"ewc": None, "n": 1}, {"ewc": {"strength": 2.0}, "n": 1.0}
    assert config.differences(off, on) == ["ewc.strength: (absent) -> 2.0"]
    assert config.differences(on, off) == ["ewc.strength: 2.0 -> (absent)"]
    assert config.differences(off, {**off, "ewc": {}}) == ["ewc: null -> {}"]
    assert config.differences(off, {"n": 1}) == ["ewc: null -> (absent)"]


def test_describe_lists_every_leaf_with_the_text_under_it():
    rows = {row.key: row for row in config.describe(Run)}
    assert rows["lr"] == ("lr", "a number", "0.0003", "Peak learning rate.")
    assert rows["topology.density"].text == "Live weights / all weights, in (0, 1]."
    assert rows["data.domains.N.name"].default == "required"
    assert rows["topology.kind"].type == "one of dense, er_fixed, brf"
    assert "topology" not in rows
