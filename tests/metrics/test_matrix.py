"""The matrix from records, whole and partial, and seen through fewer columns."""

import math

import numpy as np
import pytest

from sparsecl.metrics.forgetting import f_last
from sparsecl.metrics.matrix import ResultMatrix
from sparsecl.metrics.records import read_records
from tests.metrics.fake_run import NUM_BYTES, NUM_TOKENS, evaluation, from_matrix, write_lines

LOSS = [[4.0, 5.0, 6.0], [2.0, 4.5, 6.0], [2.5, 2.0, 5.5], [3.0, 2.4, 2.0]]
DOMAINS, ORDER = ["a", "b", "c"], [0, 1, 2]


def matrix_from(tmp_path, records):
    write_lines(tmp_path / "scalars.jsonl", records)
    return ResultMatrix.from_records(read_records(tmp_path))


def test_rows_are_phases_and_columns_are_domains(tmp_path):
    matrix = matrix_from(tmp_path, from_matrix(LOSS, DOMAINS, ORDER))
    assert matrix.domains == ("a", "b", "c") and matrix.order == (0, 1, 2)
    np.testing.assert_allclose(matrix.loss, LOSS, rtol=1e-15)
    np.testing.assert_allclose(
        matrix.bits_per_byte, np.array(LOSS) * NUM_TOKENS / NUM_BYTES / math.log(2), rtol=1e-14
    )
    np.testing.assert_allclose(matrix.perplexity, np.exp(LOSS), rtol=1e-14)
    np.testing.assert_allclose(matrix.accuracy, np.exp(-np.array(LOSS)), atol=1 / NUM_TOKENS)


def test_evaluations_in_between_are_not_rows(tmp_path):
    records = from_matrix(LOSS, DOMAINS, ORDER)
    during = evaluation("a", 0.1, phase=0, at="during", step=100)
    matrix = matrix_from(tmp_path, [*records[:7], during, *records[7:]])
    np.testing.assert_allclose(matrix.loss, LOSS, rtol=1e-15)


@pytest.mark.parametrize("num_evaluations", range(13))
def test_a_partial_run_keeps_its_complete_rows(tmp_path, num_evaluations):
    """Cut after any evaluation: a phase counts once all three domains were scored."""
    matrix = matrix_from(tmp_path, from_matrix(LOSS, DOMAINS, ORDER)[: 1 + num_evaluations])
    finished = max(num_evaluations // 3 - 1, 0)
    assert matrix.num_phases == finished
    assert matrix.order == tuple(ORDER[:finished])
    if num_evaluations >= 3:
        np.testing.assert_allclose(matrix.loss, LOSS[: finished + 1], rtol=1e-15)
    else:
        assert np.isfinite(matrix.loss[0]).sum() == num_evaluations


def test_a_gap_ends_the_matrix(tmp_path):
    records = from_matrix(LOSS, DOMAINS, ORDER)
    del records[8]  # domain b after phase 1
    assert matrix_from(tmp_path, records).num_phases == 1


def test_select_keeps_phases_of_dropped_domains():
    matrix = ResultMatrix.from_arrays(DOMAINS, ORDER, LOSS).select(["c", "a"])
    assert matrix.domains == ("c", "a") and matrix.order == (1, -1, 0)
    assert matrix.loss[:, 1].tolist() == [4.0, 2.0, 2.5, 3.0]
    assert f_last(matrix.loss, matrix.order) == 1.0  # only "a" was followed by something
    with pytest.raises(ValueError):
        matrix.select(["b"])


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"loss must be .* = \(3, 2\), got \(2, 2\)"):
        ResultMatrix.from_arrays(["a", "b"], [0, 1], [[4, 4], [2, 4]])
    with pytest.raises(ValueError, match="order must index the 1 domains"):
        ResultMatrix.from_arrays(["a"], [1], [[4], [2]])
    with pytest.raises(ValueError, match="accuracy must be"):
        ResultMatrix.from_arrays(["a"], [0], [[4], [2]], accuracy=[[0.5]])


def test_a_huge_loss_has_infinite_perplexity_without_a_warning():
    assert ResultMatrix.from_arrays(["a"], [], [[1e4]]).perplexity[0, 0] == math.inf
