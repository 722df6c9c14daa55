"""Faults of the files and folders that runs, studies and caches open."""

from tests.faults.row import LAUNCH, SAVES, Row

PLANTED = f"{LAUNCH}planted.py::"
DISK = f"{LAUNCH}disks.py::"
UNIT = "tests/test_files.py::"
STUDY = "tests/experiments/study/test_study_folder.py::"

FILES: tuple[Row, ...] = (
    Row(
        "F1",
        "a link in place of a file or folder of a run or study",
        (
            f"{PLANTED}test_a_run_folder_is_checked_before_anything_is_opened",
            f"{PLANTED}test_a_run_is_not_started_over_them",
            f"{PLANTED}test_nothing_that_a_run_has_is_followed",
            f"{PLANTED}test_the_folder_itself_may_be_a_link",
            f"{STUDY}test_nothing_of_a_study_is_followed",
            f"{UNIT}test_only_plain_files_are_opened",
            f"{UNIT}test_a_second_name_is_not_written_to",
            f"{UNIT}test_every_file_is_opened_by_an_opener",
        ),
        "73, named; the target is untouched",
        "a folder that becomes a link while a run writes is not looked for",
    ),
    Row(
        "F2",
        "a pipe, a socket, a device or a folder in place of a file",
        (
            f"{PLANTED}test_a_run_folder_is_checked_before_anything_is_opened",
            f"{PLANTED}test_an_input_that_is_a_pipe_is_refused_at_once",
            f"{STUDY}test_nothing_of_a_study_is_followed",
            f"{UNIT}test_only_plain_files_are_opened",
            f"{UNIT}test_only_a_file_is_replaced",
        ),
        "73 for outputs, 66 for inputs, at once",
    ),
    Row(
        "F2b",
        "a path in a folder of somebody else, a name that is too long or has a NUL",
        ("tests/test_command.py::test_a_path_that_cannot_be_looked_at_is_one_line",),
        "66 for inputs, 73 for outputs, 64 for a NUL",
    ),
    Row(
        "F3",
        "the disk is full or fails at any file of a run",
        (
            f"{DISK}test_a_disk_that_is_full_at_one_file",
            f"{DISK}test_a_disk_that_fails_at_any_file",
            f"{DISK}test_a_small_disk",
            f"{DISK}test_a_disk_of_any_size",
            f"{UNIT}test_every_failure_of_a_disk_is_one_line_with_a_code",
        ),
        "73 or 74 with one line; a picture or a log costs a warning",
    ),
    Row(
        "F4",
        "the run folder is removed, renamed or replaced; `latest` is a folder",
        (
            f"{DISK}test_a_folder_that_goes_away_is_said_to_be_gone",
            f"{UNIT}test_a_folder_that_is_gone_is_named",
            f"{SAVES}disk_full.py::test_latest_that_is_a_folder",
        ),
        "73 or 74; says what is the case",
        "an unmounted disk is an ESTALE that is made up",
    ),
    Row(
        "F5",
        "a strict umask",
        (
            f"{DISK}test_under_a_strict_umask_nobody_else_can_read",
            f"{UNIT}test_the_umask_says_who_may_read",
        ),
        "nobody else can read what is written",
    ),
    Row(
        "F6",
        "temporary files and folders of killed processes",
        (
            f"{UNIT}test_what_a_killed_process_left_is_removed_and_what_a_live_one_holds_is_not",
            f"{UNIT}test_leftovers_are_not_removed_through_links",
            f"{DISK}test_what_a_killed_run_left_half_written_is_gone",
        ),
        "removed at the next start, unless their process lives",
        "one on a file system without locks stays",
    ),
)
