"""What the studies say that they cost is what tools/plan.py counts."""

import re
from pathlib import Path

import pytest

from sparsecl.programs import plan

STUDIES = Path(__file__).resolve().parents[2] / "launch" / "experiments"


def stated() -> dict[str, tuple[str, int]]:
    """Study -> scale and GPU-hours, from the table of the folder's README."""
    text = (STUDIES / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    return {name: (scale, int(hours)) for name, scale, hours in rows}


def test_every_study_states_its_cost_in_both_places():
    assert {*stated(), "template"} == {path.stem for path in STUDIES.glob("*.yaml")}
    for name, (scale, hours) in stated().items():
        text = (STUDIES / f"{name}.yaml").read_text()
        line = next(line for line in text.splitlines() if line.startswith(f"  {scale}:"))
        assert re.search(rf"\b{hours} GPU-hours", line), line


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(stated()))
def test_the_cost_is_what_the_plan_counts(name, capsys):
    scale, hours = stated()[name]
    gpus = "8" if name == "exp4_scale" else "1"
    study = str(STUDIES / f"{name}.yaml")
    assert plan.main([study, "--scale", scale, "--gpus", gpus, "--gpu", "h100"]) == 0
    (found,) = re.findall(r"^In all: ([\d,.]+) GPU-hours", capsys.readouterr().out, re.MULTILINE)
    assert float(found.replace(",", "")) == pytest.approx(hours, abs=1.0)
