"""tools/inspect_topology.py: what it prints, writes and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsecl.programs import inspect_topology as tool
from sparsecl.topology.inspection import pick_layers, shared_weights
from sparsecl.topology.layer import LayerTopology
from tests.events import HANG

ROOT = Path(__file__).resolve().parents[2]

MODEL = "{preset: null, layers: 3, width: 16, heads: 2, context: 8}"
NUM_MASKS = 18


def write_config(path, name="tiny", topology="{density: 0.25}", seed=0, model=MODEL):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"name: {name}\nseed: {seed}\nmodel: {model}\ntopology: {topology}\n")
    return path


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "tiny.yaml")


def ask(capsys, *arguments):
    code = tool.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def section(text, title):
    """Lines of the part that begins with `title`."""
    (part,) = [part for part in text.rstrip().split("\n\n") if part.startswith(title)]
    return part.splitlines()


def test_the_demo_without_torch_or_matplotlib():
    blocked = "import sys, runpy\n" + "".join(
        f"sys.modules[{name!r}] = None\n" for name in ("torch", "deepspeed", "matplotlib")
    )
    path = ROOT / "tools" / "inspect_topology.py"
    script = f"{blocked}sys.argv = [{str(path)!r}]\nrunpy.run_path({str(path)!r}, None, '__main__')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("demo (launch/configs/demo.yaml)\ner_fixed rho 0.1: 24 matrices")
    assert section(done.stdout, "Spectrum")[0] == "Spectrum (18 of 24 masks)"
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_one_line_per_kind(capsys, config):
    code, out, err = ask(capsys, config)
    assert (code, err) == (0, "")
    kinds = ["q", "k", "v", "o", "up", "down"]
    assert [line.split()[0] for line in section(out, "Live weights")[3:]] == kinds
    assert [line.split()[0] for line in section(out, "Spectrum")[2:]] == kinds
    q = section(out, "Live weights")[3].split()
    assert q[:6] == ["q", "3", "16", "x", "16", "0.25000"]
    side = tool.load_side(config)
    sigma_2 = [
        np.linalg.svd(side.topologies[f"layers.{i}.attention.q"].mask().astype(float))[1][1]
        for i in range(3)
    ]
    assert section(out, "Spectrum")[2].split()[4] == f"{np.mean(sigma_2):.3f}"
    assert "Differences" not in out and "layers.0" not in out


def test_one_line_per_layer_with_digests(capsys, config):
    _, out, _ = ask(capsys, config, "--layers", "--max_spectra", 2)
    digests = dict(line.split() for line in section(out, "Digests")[1:])
    topologies = tool.load_side(config).topologies
    assert digests == {name: topology.digest for name, topology in topologies.items()}
    assert len(section(out, "Live weights")) == 3 + NUM_MASKS
    names = [line.split()[0] for line in section(out, "Spectrum")[2:]]
    assert names == ["layers.0.attention.q", "layers.0.attention.k"]


def test_a_run_folder_and_overrides(capsys, tmp_path, config):
    write_config(tmp_path / "run" / "config.yaml")
    _, run, _ = ask(capsys, tmp_path / "run")
    _, alone, _ = ask(capsys, "--config", config, "--set", "seed=0")
    _, other, _ = ask(capsys, "--config", config, "--set", "seed=1")
    assert run.splitlines()[1:] == alone.splitlines()[1:] != other.splitlines()[1:]
    assert alone.startswith(f"tiny ({config} seed=0)\n")


def test_two_sides(capsys, config):
    arguments = (config, "--config", config, "--set", "topology.density=0.5")
    _, out, _ = ask(capsys, *arguments)
    labels = [line.split()[:2] for line in section(out, "Live weights")[3:]]
    assert labels[:3] == [["q", "A"], ["q", "B"], ["k", "A"]]
    lines = section(out, "Differences, B - A")
    assert lines[0] == "Differences, B - A (0 of 18 masks are equal)"
    a, b = tool.load_side(config), tool.load_side(config, ["topology.density=0.5"])
    names = [f"layers.{i}.attention.q" for i in range(3)]
    both = [np.mean(b.topologies[n].mask()[a.topologies[n].mask()]) for n in names]
    assert lines[2].split()[:2] == ["q", "+0.25000"]
    assert lines[2].endswith(f"   {np.mean(both):.4f} (0.5000)")


def test_equal_sides_have_everything_in_common(capsys, config):
    _, out, _ = ask(capsys, config, config)
    lines = section(out, "Differences")
    assert lines[0].endswith("(18 of 18 masks are equal)")
    equal = ["+0.00000", *["+0.000"] * 3, "1.0000", "(0.2500)"]
    assert [line.split()[1:] for line in lines[2:]] == [equal] * 6


def test_dense_says_so(capsys, tmp_path, config):
    dense = write_config(tmp_path / "dense.yaml", topology="{kind: dense}")
    code, out, _ = ask(capsys, dense, "--plot", tmp_path / "dense.png")
    assert code == 0 and "dense: every weight is live" in out
    assert "Live weights" not in out and "Spectrum" not in out
    assert section(out, "Reach")[3].split() == ["1", *["1.0000", "1.000", "1.000"] * 2]
    _, out, _ = ask(capsys, dense, config)
    assert section(out, "Differences")[0].endswith("no masks in A (dense)")
    assert section(out, "Live weights")[3].startswith("q B")


def test_models_of_other_sizes_are_set_side_by_side(capsys, tmp_path, config):
    model = "{preset: null, layers: 2, width: 32, heads: 2, context: 8}"
    other = write_config(tmp_path / "other.yaml", model=model, topology="{density: 0.02}")
    code, out, _ = ask(capsys, config, other)
    assert code == 0 and "(0 of 18 masks are equal)" in out
    assert section(out, "Differences")[2].endswith("   -")  # no matrix of the same shape
    assert "each of 16, each of 32" in section(out, "Reach")[0]


def test_the_file_holds_the_numbers(capsys, tmp_path, config):
    out = tmp_path / "new" / "graph.json"
    code, _, err = ask(capsys, config, config, "--max_spectra", 100, "--out", out)
    assert (code, err) == (0, f"wrote {out}\n")
    value = json.loads(out.read_text())
    side = value["sides"][0]
    assert value["live_in_b_of_a"] == dict.fromkeys(side["spectra"], 1.0)
    assert len(side["layers"]) == len(side["spectra"]) == NUM_MASKS
    spectrum = side["spectra"]["layers.2.mlp.up"]
    assert len(spectrum["singular_values"]) == 16
    assert spectrum["gap"] == 1 - spectrum["sigma_2"] / spectrum["sigma_1"]
    assert len(side["reach"]["with_residual"]["mean"]) == 3


def test_the_picture(capsys, tmp_path, config):
    picture = tmp_path / "graph.png"
    chosen = ("--show", "layers.1.attention.v", "layers.2.mlp.down")
    code, _, err = ask(capsys, config, "--plot", picture, "--max_spectra", 0, *chosen)
    assert (code, err) == (0, f"wrote {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = tool.inspect(tool.load_side(config), "", 0, tool.StatusLine())
    first = ["layers.0.attention.q", "layers.0.mlp.up", "layers.0.mlp.down"]
    assert tool._shown(found, []) == first


def test_which_layers_get_a_spectrum():
    names = [f"layers.{i}.{kind}" for i in range(5) for kind in ("q", "up")]
    blocks = [name.split(".")[1] for name in pick_layers(names, None)]
    assert blocks == ["0", "0", "4", "4", "2", "2"]
    assert pick_layers(names, 3) == ["layers.0.q", "layers.0.up", "layers.4.q"]
    assert sorted(pick_layers(names, 99)) == sorted(names)
    assert pick_layers(names[:2], None) == names[:2]
    assert pick_layers([], None) == []


def test_shared_weights_by_hand():
    def side(*edges):
        return {"layer": LayerTopology("layer", 2, 4, np.array(edges))}

    assert shared_weights(side(0, 1, 5, 7), side(1, 2, 7)) == {"layer": 0.5}
    assert shared_weights(side(1, 2, 7), side(0, 1, 5, 7)) == {"layer": 2 / 3}


def test_long_work_says_what_it_does(capsys, config):
    tool.inspect(tool.load_side(config), "", 2, tool.StatusLine(patience=0.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].endswith("spectrum 1 of 2, layers.0.attention.q")
    tool.inspect(tool.load_side(config), "", 2, tool.StatusLine(patience=60.0))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{folder}/nowhere",), 66, "nowhere: no such run folder or run config"),
        (("{folder}",), 66, "not a run folder, it has no config.yaml"),
        (("{config}", "{config}", "--config", "{config}"), 64, "3 sides are given; at most 2"),
        (("{config}", "--set", "seed=1"), 64, "--set seed=1: which side does it change?"),
        (("--config", "{config}", "--set", "topology.desnity=1"), 64, "did you mean"),
        (("--config", "{config}", "--set", "topology.density=0.0001"), 64, "topology.density"),
        (("{config}", "--max_spectra", "-1"), 64, "--max_spectra must be >= 0, got -1"),
        (("{config}", "--plot", "graph.pdf"), 64, "end the name in .png"),
        (("{config}", "--show", "layers.0.mlp.up"), 64, "has an effect with --plot FILE.png only"),
        (("{config}", "--plot", "a.png", "--show", "mlp"), 64, "named like layers.0.attention.q"),
        (("{config}", "--out", "{config}/a.json"), 73, "a.json: cannot be written"),
        (("{config}", "--plot", "{config}/a.png"), 73, "cannot be written"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    capsys, tmp_path, config, arguments, code, message
):
    given = [text.format(folder=tmp_path, config=config) for text in arguments]
    got, _, err = ask(capsys, *given)
    assert got == code
    assert err.startswith("sparsecl: ") and message in err and err.count("\n") == 1
