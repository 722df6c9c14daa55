"""Faults of records, results and the row before training."""

from tests.faults.row import LAUNCH, RANKS, SECURE, Row

RECORDS: tuple[Row, ...] = (
    Row(
        "R1",
        "one bit flipped in scalars.jsonl, before or behind the checkpoint, or of a finished run",
        (
            f"{LAUNCH}records.py::test_a_flipped_bit_before_the_checkpoint_is_refused",
            f"{LAUNCH}records.py::test_what_lies_behind_the_checkpoint_does_not_count",
            f"{LAUNCH}records.py::test_damaged_records_of_a_finished_run_are_refused",
            f"{LAUNCH}records.py::test_no_bit_before_a_checkpoint_goes_unseen",
            f"{LAUNCH}records.py::test_no_bit_of_finished_records_changes_a_figure",
            "tests/test_seal.py::test_every_bit_before_the_last_seal_counts",
            "tests/test_log.py::test_a_record_that_was_changed_is_not_continued",
            "tests/metrics/test_records.py::test_nothing_stands_after_the_end_of_a_run",
            "tests/metrics/test_records.py::test_a_header_without_its_seal_takes_no_seal_away",
        ),
        "65, nothing changed; behind the checkpoint it is cut off and written anew",
        "bits are drawn over the whole file, not all of them tried",
    ),
    Row(
        "R2",
        "results.json truncated, damaged or of another run",
        (
            f"{LAUNCH}records.py::test_damaged_results_are_made_anew",
            f"{LAUNCH}records.py::test_results_in_the_folder_of_a_run_that_has_not_ended",
            f"{LAUNCH}records.py::test_whole_records_of_another_run_are_refused",
            "tests/metrics/test_results.py::test_results_that_cannot_be_read",
            "tests/metrics/test_results.py::test_records_of_another_run",
            "tests/metrics/test_results.py::test_a_study_does_not_average_what_is_damaged",
            f"{LAUNCH}records.py::test_no_bit_of_the_results_stays_changed",
            f"{SECURE}run_folder.py::test_results_of_a_finished_run_are_computed_not_believed",
        ),
        "made anew from the records, bit for bit; 65 if they have no end",
    ),
    Row(
        "R3",
        "the row before training is asked for again",
        (
            f"{LAUNCH}records.py::test_the_row_before_training_is_that_of_the_initial_checkpoint",
            f"{RANKS}initial.py::test_row_0_is_computed_again",
        ),
        "--init_checkpoint keeps step 0, and its scores are that row, bit for bit",
        "bit for bit on the layout that wrote it; others round differently",
    ),
    Row(
        "R4",
        "attempts.jsonl or config.yaml of a run changed",
        (
            "tests/engine/observe/test_goodput.py::"
            "test_a_changed_file_gives_no_goodput_rather_than_another",
            "tests/tools/test_interference.py::"
            "test_a_config_that_is_not_the_checkpoints_is_refused",
        ),
        "no goodput, with a warning; 65 where config.yaml counts",
        "environment.json and ds_config.json are for people: a resume writes them anew, and no "
        "figure of a run comes from them",
    ),
)
