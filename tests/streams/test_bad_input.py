"""What is wrong with the config of a stream is one line, and told by a dry run too."""

import pytest

from sparsecl.errors import UserError
from sparsecl.experiments.study.stream_study import is_of_streams
from sparsecl.programs import stream
from sparsecl.streams import run
from sparsecl.topology.config import OverrideConfig, TopologyConfig
from tests.streams.small import config, images


@pytest.mark.parametrize(
    ("topology", "text"),
    [
        (TopologyConfig(kind="nm", density=0.3), "nm"),
        (
            TopologyConfig(kind="er_fixed", overrides=(OverrideConfig(kinds=("q",), density=0.5),)),
            r"topology.overrides.0: no layer has kinds \['q'\]",
        ),
    ],
)
def test_a_graph_that_does_not_exist_is_told_before_a_run(topology, text, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "read", lambda stream: images())
    with pytest.raises(UserError, match=text):
        run.check(config(topology=topology), tmp_path)


@pytest.mark.parametrize("value", ["[a, b]", "[[kind, slippery_ant]]", "text"])
def test_a_block_that_is_no_mapping_is_one_line(value, tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.yaml"
    path.write_text(f"stream: {value}\n")
    monkeypatch.setattr("sys.argv", ["stream.py", str(path), "--dry_run"])
    assert stream.main() == UserError.exit_code
    assert "a.yaml:1: stream: expected" in capsys.readouterr().err
    path.write_text(f"base: {value}\n")
    assert not is_of_streams(path)


@pytest.mark.parametrize(
    ("given", "text"),
    [("name: ../../x", "name must be made of"), ("seed: -1", "seed must be >= 0, got -1")],
)
@pytest.mark.parametrize("kind", ["permuted_mnist", "slippery_ant"])
def test_names_and_seeds_are_bounded_as_those_of_text(
    kind, given, text, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "a.yaml"
    path.write_text(f"stream: {{kind: {kind}}}\n{given}\n")
    monkeypatch.setattr("sys.argv", ["stream.py", str(path), "--dry_run"])
    assert stream.main() == UserError.exit_code
    assert text in capsys.readouterr().err
