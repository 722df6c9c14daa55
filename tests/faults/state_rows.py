"""Faults of the state that a checkpoint, or another rank, says a run is in."""

from tests.faults.row import LAUNCH, SAVES, Row

MEETING = f"{LAUNCH}meeting.py::test_"
SAVED = "tests/engine/resume/test_saved.py::test_"

STATES_OF_RUNS: tuple[Row, ...] = (
    Row(
        "S1",
        "the manifest says of the run what cannot be, with digests that fit",
        (
            f"{SAVED}no_lie_is_believed",
            f"{SAVED}what_a_law_says",
            f"{LAUNCH}resume.py::test_an_unlawful_checkpoint_is_passed_over",
            f"{LAUNCH}resume.py::test_no_lawful_checkpoint_is_no_reason_to_begin_anew",
        ),
        "an older one is used; 65 if none is lawful",
        "who changes published.jsonl too can lie about seconds, means and samples",
    ),
    Row(
        "S2",
        "counters and scalers of other names, moments that are none",
        (f"{SAVED}no_lie_is_believed", f"{SAVED}what_a_law_says"),
        "as S1",
    ),
    Row(
        "S3",
        "masters or moments that are not finite, negative, or of another precision",
        (
            f"{LAUNCH}resume.py::test_an_unlawful_checkpoint_is_passed_over",
            f"{SAVES}laws.py::test_wrong_numbers",
        ),
        "as S1",
    ),
    Row(
        "S4",
        "a checkpoint that a newer version wrote",
        (
            f"{LAUNCH}resume.py::test_a_newer_version_s_checkpoint_is_neither_passed_over_nor_touched",
            f"{SAVES}publish.py::test_what_a_newer_version_wrote_stays",
            f"{SAVES}hostile.py::test_the_digest_is_checked_before_anything_else",
        ),
        "65; never removed, replaced or counted",
    ),
    Row(
        "S5",
        "ranks of two jobs, with two configs or with two texts meet",
        (
            f"{MEETING}a_rank_that_was_started_as_something_else_does_not_train_along",
            f"{MEETING}a_rank_that_finds_other_text_does_not_train_along",
            f"{MEETING}a_listener_that_says_nothing_is_not_waited_for",
        ),
        "64 or 65 on all ranks, before anything is done",
        "code that was edited on one machine is told by no version",
    ),
)
