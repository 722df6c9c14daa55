"""An exported model under lm-evaluation-harness (extra `eval`), on a task of local files."""

import json
import math
from pathlib import Path

import pytest
import torch

from sparsecl.programs.convert import main
from tests.analysis.made_run import load, make_run

TEXTS = ("def f(x):", "return 1", "a = b + c")  # each fits the context of 16
TASK = """
task: held_out
dataset_path: json
dataset_kwargs: {data_files: {test: TEXTS}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
"""


@pytest.mark.slow
def test_bits_per_byte_are_those_of_the_model(tmp_path: Path, shared_cache: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra: pip install 'sparsecl[eval]'")
    model = make_run(tmp_path / "run", load(shared_cache, "tokenizer.kind=bytes")).eval()
    assert main(["hf-export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tasks / "texts.jsonl").write_text("\n".join(lines))
    (tasks / "held_out.yaml").write_text(TASK.replace("TEXTS", str(tasks / "texts.jsonl")))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "out"), "device": "cpu", "dtype": "float32"},
        tasks=["held_out"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks)),
        bootstrap_iters=0,
    )
    nats = 0.0
    for text in TEXTS:
        ids = torch.tensor([[256, *text.encode()]])  # end-of-text comes first
        with torch.no_grad():
            scores = model.logits(ids[:, :-1])[..., : model.vocab_size].log_softmax(-1)
        nats -= float(scores.gather(-1, ids[:, 1:, None]).sum())
    expected = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert found["results"]["held_out"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
