"""tools/plan.py with a study that is tuned: its trials are paid for too."""

from sparsecl.planning.subjects import read_subjects
from tests.experiments.fake_tuning import EWC, GRID, STRENGTHS, study_file


def test_the_trials_of_every_arm_are_counted(tmp_path):
    tokenizer = ("  model:", "  tokenizer: {kind: bytes}\n  model:")
    found = read_subjects(study_file(tmp_path, "", tokenizer), ds_path=None)
    runs = {one.name: (one.num_runs, one.is_tuning) for one in found.subjects}
    assert runs == {
        "dense, tuning": (5 * 3, True),
        "sparse, tuning": (5 * 3, True),
        "dense": (2, False),
        "sparse": (2, False),
    }
    orders = {one.name: one.config.phases.order for one in found.subjects}
    assert orders["dense, tuning"] == ("b", "a") and orders["dense"] == ()


def test_an_arm_pays_for_the_keys_that_it_has(tmp_path):
    tokenizer = ("  model:", "  tokenizer: {kind: bytes}\n  model:")
    found = read_subjects(study_file(tmp_path, "", tokenizer, (GRID, STRENGTHS), EWC), ds_path=None)
    runs = {one.name: one.num_runs for one in found.subjects if one.is_tuning}
    assert runs == {"dense, tuning": 3 * 3, "sparse, tuning": 3 * 3, "ewc, tuning": 3 * 2 * 3}
