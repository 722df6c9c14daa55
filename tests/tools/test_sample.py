"""tools/sample.py: texts of runs, checkpoints and phases; what it prints, writes and refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecl import dist
from sparsecl.analysis.load import load_model
from sparsecl.checkpoint.manifest import read_manifest, write_manifest
from sparsecl.files import sha256_file
from sparsecl.model.choice import ChoiceConfig
from sparsecl.model.generate import generate
from sparsecl.programs import sample as tool
from tests.analysis import made_run
from tests.launch.starter import Starter

PHASES = ["after phase 0, a (step_12)", "after phase 1, b (step_24)"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A run with one checkpoint, in the middle of its first phase."""
    folder = tmp_path_factory.mktemp("made") / "run"
    made_run.make_run(folder, made_run.load(shared_cache))
    return folder


@pytest.fixture(scope="module")
def trained(
    server: None, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path
) -> dict[str, Path]:
    """A dense and a sparse run of two phases, which keep the checkpoints of both."""
    folder = tmp_path_factory.mktemp("trained")
    starter = Starter(folder, shared_cache)
    config = starter.config(checkpoint={"keep": 2}, optimizer={"lr": 1.0e-2})
    runs = {}
    for kind in ("dense", "er_fixed"):
        runs[kind] = folder / kind
        words = ("--run_dir", str(runs[kind]), "--set", f"topology.kind={kind}")
        done = starter.run(*words, config=config)
        assert done.code == 0, done.err
    return runs


def ask(capsys, *arguments):
    code = tool.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def asked(capsys, tmp_path, *arguments):
    """What --json has."""
    code, text, err = ask(capsys, *arguments, "--json", tmp_path / "found.json")
    assert code == 0, err
    return json.loads((tmp_path / "found.json").read_text()), text


def model_of(run, cache):
    config = made_run.load(cache)
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    model = load_model(
        checkpoint, config.model, config.topology, vocab_size=257, seed=0, device=dist.device()
    )
    return model.eval()


@pytest.mark.parametrize("kind", ["dense", "er_fixed"])
def test_every_phase_writes_on_from_the_same_prompt(capsys, tmp_path, trained, kind):
    words = (trained[kind], "--prompt", "def main", "--phases", "--number", "2", "--tokens", "20")
    found, text = asked(capsys, tmp_path, *words)
    assert [line for line in text.splitlines() if line.startswith("====")] == [
        f"==== {title} ====" for title in PHASES
    ]
    assert text.count("def main") == 4 and text.count("---- sample 2 ----") == 2
    blocks = found["checkpoints"]
    assert [(b["phase"], b["domain"], b["phase_ended"]) for b in blocks] == [
        (0, "a", True),
        (1, "b", True),
    ]
    assert [(b["checkpoint"], b["step"]) for b in blocks] == [("step_12", 12), ("step_24", 24)]
    first, second = (b["samples"][0] for b in blocks)
    assert first["log_probs"] != second["log_probs"]
    # The newest checkpoint by itself writes what it does beside the others.
    alone, _ = asked(capsys, tmp_path, trained[kind], "--prompt", "def main", "--tokens", "20")
    assert alone["checkpoints"][0]["samples"] == [second]
    folder = trained[kind] / "checkpoints" / "step_24"
    assert blocks[1]["digest"] == sha256_file(folder / "manifest.json")


def test_phases_that_are_gone_are_named(capsys, tmp_path, trained):
    run = Path(shutil.copytree(trained["dense"], tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step_12")
    code, text, err = ask(capsys, run, "--phases", "--tokens", "2")
    assert code == 0 and PHASES[1] in text and PHASES[0] not in text
    assert "no checkpoint of the end of phase 0 (a): a run keeps the last 2. " in err
    assert "With checkpoint.keep=2 all of this one would be there." in err


def test_a_damaged_phase_is_passed_over(capsys, tmp_path, trained):
    run = Path(shutil.copytree(trained["dense"], tmp_path / "run"))
    shard = run / "checkpoints" / "step_12" / "rank_0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    code, text, err = ask(capsys, run, "--phases", "--tokens", "2")
    assert code == 0 and PHASES[1] in text and PHASES[0] not in text
    assert f"passed over: {shard}: sha256 differs from the manifest" in err
    # Named, it is an error.
    code, text, err = ask(capsys, shard.parent, "--tokens", "2")
    assert (code, text) == (65, "") and f"sparsecl: {shard}: sha256 differs" in err


def test_a_run_in_its_first_phase_has_no_phase_to_show(capsys, made):
    code, text, err = ask(capsys, made, "--phases")
    assert (code, text) == (66, "") and "has no checkpoint of the end of a phase" in err
    assert ask(capsys, made, "--tokens", "1")[2].endswith("in phase 0, a (step_3)\n")


def test_the_same_seed_gives_the_same_text_however_many_are_asked_for(capsys, made):
    words = (made, "--prompt", "ab", "--tokens", "30")
    code, text, _ = ask(capsys, *words, "--number", "3")
    assert code == 0 and ask(capsys, *words, "--number", "3")[1] == text
    texts = [part.partition("\n")[2] for part in text.split("---- sample ")[1:]]
    assert len(set(texts)) == 3
    assert ask(capsys, *words)[1] == texts[0].removesuffix("\n")
    assert ask(capsys, *words, "--seed", "1")[1] not in texts


def test_greedy_is_the_argmax(capsys, tmp_path, made, shared_cache):
    words = ("--prompt", "ab", "--tokens", "8", "--temperature", "0")
    found, _ = asked(capsys, tmp_path, made, *words)
    (one,) = found["checkpoints"][0]["samples"]
    model = model_of(made, shared_cache)
    seen = [97, 98]
    for _ in one["tokens"]:
        tokens = torch.tensor([seen], device=dist.device())
        logits = model(tokens, tokens, with_logits=True)[2]
        seen.append(int(logits[0, -1].argmax()))
    assert one["tokens"] == seen[2:]
    assert (
        asked(capsys, tmp_path, made, *words, "--seed", "5")[0]["checkpoints"][0]
        == (found["checkpoints"][0])
    )
    assert (
        asked(capsys, tmp_path, made, *words[:4], "--top_k", "1")[0]["checkpoints"][0]
        == (found["checkpoints"][0])
    )


def test_log_probs_are_the_models_own_loss(capsys, tmp_path, made, shared_cache):
    """Of the model itself, whatever the tokens are drawn from."""
    shape = ("--temperature", "1.7", "--top_k", "200", "--top_p", "0.9")
    found, text = asked(capsys, tmp_path, made, "--prompt", "ab", "--tokens", "10", *shape)
    assert found["settings"] == {
        "tokens": 10, "temperature": 1.7, "top_k": 200, "top_p": 0.9, "seed": 0, "number": 1
    }  # fmt: skip
    assert (found["run"], found["prompt"]) == ("tiny", "ab")
    block = found["checkpoints"][0]
    (one,) = block["samples"]
    assert block["prompt_tokens"] == [97, 98] and len(one["tokens"]) == len(one["log_probs"])
    whole = torch.tensor([[97, 98, *one["tokens"]]], device=dist.device())
    loss = model_of(made, shared_cache)(whole[:, :-1], whole[:, 1:])[0][0, 1:]
    np.testing.assert_allclose(one["log_probs"], -loss.detach().cpu(), rtol=1e-5)
    shown = "".join("\ufffd" if ord(c) < 32 and c not in "\t\n" else c for c in one["text"])
    assert text.startswith("ab") and len(text) == len(shown) + 3


def test_a_text_ends_with_its_document(made, shared_cache):
    model = model_of(made, shared_cache)
    uniform = np.random.default_rng(0).random(40)
    whole = generate(model, [97], uniform, ChoiceConfig())
    assert len(whole.tokens) == 40  # more than the context of 16
    at = whole.tokens.index(whole.tokens[25])
    cut = generate(model, [97], uniform, ChoiceConfig(), end=whole.tokens[25])
    assert (cut.tokens, cut.log_probs) == (whole.tokens[: at + 1], whole.log_probs[: at + 1])


def test_the_window_is_the_context(made, shared_cache):
    """A token beyond it is not seen."""
    model = model_of(made, shared_cache)
    uniform = np.random.default_rng(0).random(3)
    texts = [generate(model, [97 + k, *range(16)], uniform, ChoiceConfig()) for k in (0, 1)]
    assert texts[0] == texts[1]


def test_no_prompt_begins_a_document_and_a_long_one_is_cut(capsys, tmp_path, made):
    found, _ = asked(capsys, tmp_path, made, "--tokens", "2")
    assert found["checkpoints"][0]["prompt_tokens"] == [256]
    long = "0123456789" * 2
    code, text, err = ask(capsys, made, "--tokens", "2", "--prompt", long, "--json", tmp_path / "a")
    assert code == 0 and text.startswith(long)
    assert "--prompt has 20 tokens and the model a context of 16: it sees the last 15" in err
    found = json.loads((tmp_path / "a").read_text())
    assert found["checkpoints"][0]["prompt_tokens"] == list(long[-15:].encode())


def test_what_would_steer_a_terminal_is_not_printed(capsys, made):
    options = tool.parser().parse_args([str(made), "--prompt", "\x1b[2J\r\x9b1m\tx\n"])
    tool.show(tool.Sample((), "\x07y", (), False), 1, options)
    assert capsys.readouterr().out == "\ufffd[2J\ufffd\ufffd1m\tx\n\ufffdy\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--temperature", "-1"), 64, "--temperature must be >= 0 and finite, got -1.0"),
        (("--top_p", "0"), 64, "--top_p must be in (0, 1], got 0.0"),
        (("--top_p", "1.1"), 64, "--top_p must be in (0, 1], got 1.1"),
        (("--top_k", "0"), 64, "--top_k must be >= 1 token, got 0"),
        (("--tokens", "0"), 64, "--tokens must be >= 1, got 0"),
        (("--number", "0"), 64, "--number must be >= 1, got 0"),
        (("--prompt", "a\udcff"), 64, "--prompt: character 1 is no Unicode text"),
    ],
)
def test_bad_options_are_told_before_any_work(capsys, arguments, code, message):
    got, text, err = ask(capsys, "nowhere", *arguments)  # a folder that nobody has looked for
    assert (got, text) == (code, "")
    assert err.startswith("sparsecl: ") and message in err and err.count("\n") == 1


def test_bad_folders_are_told(capsys, tmp_path, made):
    for path, code, message in (
        (tmp_path / "nowhere", 66, "no such run folder or checkpoint folder"),
        (tmp_path, 66, "holds no checkpoint"),
    ):
        for more in ((), ("--phases",)):
            got, text, err = ask(capsys, path, *more)
            assert (got, text) == (code, "") and message in err, more
    step = made / "checkpoints" / "step_3"
    got, _, err = ask(capsys, step, "--phases")
    assert got == 64 and f"--phases wants the folder of a run, {step} is one checkpoint" in err


def test_another_format_is_refused(capsys, tmp_path, made):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    step = run / "checkpoints" / "step_3"
    path = step / "manifest.json"
    path.write_text(path.read_text().replace('"format": 4', '"format": 5', 1))
    for words in ((run,), (step,), (run, "--phases")):
        code, text, err = ask(capsys, *words)
        assert (code, text) == (65, "") and "format 5, this version reads 4" in err


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ({"phase": 3, "phase_step": 0}, "state.position.phase: 3, the run has 2 phases"),
        ({"phase": "1"}, "state.position.phase: '1', the run has 2 phases"),
        ({"phase": 2, "phase_step": 1}, "state.position.phase_step: 1 behind the end"),
    ],
)
def test_a_position_that_no_run_can_have_is_refused(capsys, tmp_path, made, position, message):
    step = Path(shutil.copytree(made / "checkpoints" / "step_3", tmp_path / "step_3"))
    manifest = read_manifest(step)
    manifest.state["position"] = position
    write_manifest(step, manifest)
    code, text, err = ask(capsys, step)
    assert (code, text) == (65, "") and f"sparsecl: {step}: {message}" in err


def test_a_checkpoint_stands_by_itself_but_needs_its_tokenizer(capsys, tmp_path, made):
    step = Path(shutil.copytree(made / "checkpoints" / "step_3", tmp_path / "step_3"))
    wanted = ask(capsys, made, "--tokens", "5")[1]
    assert ask(capsys, step, "--tokens", "5")[:2] == (0, wanted)
    manifest = read_manifest(step)
    manifest.state["tokenizer"] = "0" * 64
    write_manifest(step, manifest)
    code, text, err = ask(capsys, step, "--tokens", "5")
    assert (code, text) == (66, "") and "the tokenizer 000000000000 of the run is not below" in err


def test_a_file_that_cannot_be_written(capsys, tmp_path, made):
    code, _, err = ask(capsys, made, "--tokens", "1", "--json", tmp_path)
    assert code == 73 and f"sparsecl: {tmp_path}: cannot be written" in err


# ---- several processes -------------------------------------------------------------------------


def sampled_on_a_rank(run, out):
    """One rank of `tools/sample.py`; its exit code."""
    words = ["--prompt", "def main", "--phases", "--number", "2", "--tokens", "24"]
    code = tool.main([run, *words, "--top_k", "50", "--top_p", "0.95", "--json", out])
    return code, dist.is_initialized()


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["dense", "er_fixed"])
def test_ranks_that_share_the_model_write_the_same(pool, tmp_path, trained, kind):
    outs = [tmp_path / "one.json", tmp_path / "two.json"]
    for world_size, out in zip((1, 2), outs, strict=True):
        answers = pool.run(sampled_on_a_rank, world_size, str(trained[kind]), str(out))
        assert answers == [(0, False)] * world_size
    one, two = (json.loads(out.read_text())["checkpoints"] for out in outs)
    assert len(one) == len(two) == 2
    for block, other in zip(one, two, strict=True):
        for sample, same in zip(block["samples"], other["samples"], strict=True):
            np.testing.assert_allclose(sample.pop("log_probs"), same.pop("log_probs"), atol=1e-5)
        assert block == other


def refused_on_a_rank(run):
    return tool.main([run, "--tokens", "2"])


@pytest.mark.dist
def test_too_many_ranks_are_refused(pool, trained):
    assert pool.run(refused_on_a_rank, 3, str(trained["dense"])) == [64] * 3
