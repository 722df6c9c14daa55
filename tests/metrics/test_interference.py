"""interference.json: means by hand, there and back, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from sparsecl.errors import DataError, MissingInputError
from sparsecl.metrics.interference import (
    INTERFERENCE,
    DensityResult,
    GradientResult,
    Interference,
    InterferenceSettings,
    SingleWeightResult,
    StructureResult,
    UpdateResult,
    off_diagonal_mean,
    read_interference,
    summary_means,
    write_interference,
)
from sparsecl.metrics.interference_text import as_text, side_by_side

EYE = ((1.0, 0.5), (0.5, 1.0))
GRADIENTS = GradientResult(
    norm=(2.0, 3.0),
    cosine=EYE,
    cosine_all_parameters=((1.0, 0.25), (0.25, 1.0)),
    dot=((4.0, 3.0), (3.0, 9.0)),
    dot_per_live_weight=((0.04, 0.03), (0.03, 0.09)),
    overlap_top10=EYE,
    overlap_by_chance=0.0526,
)
UPDATE = UpdateResult(
    eps=1e-3,
    loss=(5.0, 6.0),
    loss_change=((-4e-3, -1e-3), (3e-3, -6e-3)),
    predicted=((-4.1e-3, -1.1e-3), (2.9e-3, -6.1e-3)),
    kl=((2e-6, 1e-6), (5e-6, 4e-6)),
)


def made(**changes):
    given = {
        "run": "tiny",
        "checkpoint": "step_3",
        "digest": "7f3a",
        "seed": 0,
        "settings": InterferenceSettings(sequences=2),
        "domains": ("code", "manual"),
        "num_tokens": (32, 32),
        "density": DensityResult(masked=0.1, model=0.2, num_live=100),
        "structure": StructureResult(
            num_matrices=4,
            paths_per_weight_log10=None,
            paths_ratio_to_dense_log10=None,
            rho_power=1e-3,
            share_of_own_paths_log10=None,
            share_of_own_paths_dense_log10=-3.0,
            without_path=1.0,
            reach=(0.1, 0.25),
            reach_without_residual=(0.1, 0.125),
        ),
        "gradients": GRADIENTS,
        "update": UPDATE,
        "single_weight": SingleWeightResult(logits=1.0, hidden=0.5, num_weights=16),
        "means": summary_means(GRADIENTS, UPDATE),
    }
    return Interference(**{**given, **changes})


def test_means_by_hand():
    means = summary_means(GRADIENTS, UPDATE)
    assert means["cosine_off_diagonal"] == 0.5
    assert means["cosine_all_parameters_off_diagonal"] == 0.25
    assert means["loss_change_off_diagonal"] == pytest.approx(1e-3)
    assert means["loss_change_diagonal"] == pytest.approx(-5e-3)
    assert means["kl_off_diagonal"] == means["kl_diagonal"] == pytest.approx(3e-6)
    assert means["kl_ratio"] == pytest.approx(1)
    assert off_diagonal_mean(((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))) == 30 / 6
    assert off_diagonal_mean(((1.0,),)) is None


def test_one_domain_has_no_pairs():
    one = ((1.0,),)
    names = ("cosine", "cosine_all_parameters", "dot", "dot_per_live_weight", "overlap_top10")
    gradients = dataclasses.replace(GRADIENTS, norm=(1.0,), **dict.fromkeys(names, one))
    update = UpdateResult(eps=1e-3, loss=(1.0,), loss_change=one, predicted=one, kl=one)
    means = summary_means(gradients, update)
    assert means["kl_ratio"] is means["cosine_off_diagonal"] is None
    assert means["kl_diagonal"] == 1
    found = made(domains=("a",), num_tokens=(1,), gradients=gradients, update=update, means=means)
    assert "cosine_off_diagonal                 -" in as_text(found)


def test_there_and_back(tmp_path):
    found = made()
    write_interference(tmp_path / INTERFERENCE, found)
    assert read_interference(tmp_path) == read_interference(tmp_path / INTERFERENCE) == found


def test_a_number_that_is_none_is_not_written(tmp_path):
    update = dataclasses.replace(UPDATE, loss=(float("nan"), 1.0))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_interference(tmp_path / INTERFERENCE, made(update=update))
    assert not (tmp_path / INTERFERENCE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format is 2, this version reads 1"),
        ({"domains": ["a", "b", "c"]}, "gradients.cosine must be 3 x 3"),
        ({"num_tokens": [1]}, "num_tokens must have one number for each of 2 domains"),
        ({"settings": {"eps": 0}}, "settings.eps must be in"),
        ({"kl": []}, "kl"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, change, message):
    write_interference(tmp_path / INTERFERENCE, made())
    value = json.loads((tmp_path / INTERFERENCE).read_text())
    (tmp_path / INTERFERENCE).write_text(json.dumps({**value, **change}, indent=1))
    with pytest.raises(DataError, match=message) as caught:
        read_interference(tmp_path)
    assert INTERFERENCE in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_there():
    with pytest.raises(MissingInputError, match="nowhere: not there; make it with"):
        read_interference(Path("nowhere"))


def test_text_by_hand():
    text = as_text(made())
    assert "through one live weight      no path" in text
    lines = next(part for part in text.split("\n\n") if part.startswith("Loss change")).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["code", "manual"],
        ["code", "-4.0000", "-1.0000"],
        ["manual", "+3.0000", "-6.0000"],
    ]
    assert max(map(len, text.splitlines())) <= 110
    rows = side_by_side([("one", made()), ("other", made())]).splitlines()
    assert rows[2].split() == ["one", "0.10000", "0.5000", "0.5000", "+1.00e-03", "3.00e-06"] + [
        "1.0000",
        "1.0000",
    ]
