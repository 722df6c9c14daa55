"""tools/plan.py with a study that is tuned: its trials are paid for too."""

from sparsecl.planning.subjects import read_subjects
from tests.experiments.fake_tuning import study_file


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
