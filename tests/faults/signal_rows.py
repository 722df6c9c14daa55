"""Faults of signals, streams, processes and limits."""

from tests.faults.row import LAUNCH, Row

COMMAND, PLACE = "tests/test_command.py::test_", "tests/test_place.py::test_"
STOP, MEET = f"{LAUNCH}stop.py::test_", f"{LAUNCH}meeting.py::test_"
RUNNER = "tests/experiments/running/test_runner.py::test_"
SLURM = "tests/slurm/test_scripts.py::test_"

SIGNALS: tuple[Row, ...] = (
    Row(
        "X1",
        "signals of all kinds after the save, until the process is gone",
        (
            f"{STOP}signals_on_the_way_out_change_nothing",
            f"{COMMAND}no_signal_changes_a_code_that_is_decided",
        ),
        "75",
    ),
    Row(
        "X2",
        "signals after the last step, and while results and pictures are written",
        (f"{STOP}a_finished_run_is_finished_whatever_signals_come",),
        "0",
    ),
    Row(
        "X3",
        "a signal before the first step: during imports, or while ranks wait for each other",
        (
            f"{STOP}a_signal_that_comes_during_the_imports_is_answered_after_them",
            f"{STOP}before_the_first_step_there_is_nothing_to_save",
            f"{MEET}rank_0_hears_signals_while_it_waits",
            f"{MEET}the_others_hear_signals_while_they_wait_for_rank_0",
        ),
        "75",
    ),
    Row(
        "X4",
        "a rank dies before it has come to the meeting place, or while it waits there",
        (
            f"{MEET}a_rank_that_dies_before_it_has_come_is_named_soon",
            f"{MEET}a_rank_that_came_and_fell_silent_is_named",
            f"{PLACE}a_rank_that_was_seen_and_is_gone",
            f"{PLACE}where_nothing_can_be_seen_nobody_is_gone",
        ),
        "76 within a second, 30 s on another machine",
        "a rank that dies before anybody has seen it: waited for until join_seconds",
    ),
    Row(
        "X5",
        "stdout or stderr closed, full, or without a reader, in a run and in every tool",
        (
            f"{COMMAND}a_reader_that_leaves_is_no_fault",
            f"{COMMAND}work_is_done_whatever_becomes_of_the_output",
            f"{COMMAND}both_streams_may_be_gone_or_full",
            f"{COMMAND}the_place_of_a_closed_stream_is_not_given_to_a_file",
            f"{LAUNCH}streams.py::test_a_run_does_not_need_its_streams",
        ),
        "0; 74 where the output was the result",
    ),
    Row(
        "X6",
        "SIGHUP, to a run and to a study; nohup",
        (
            f"{STOP}a_signal_is_answered_after_the_step",
            f"{STOP}what_a_shell_made_the_process_ignore_stays_ignored",
            f"{LAUNCH}sweep.py::test_a_study_is_stopped_by_any_signal",
        ),
        "75; 130",
    ),
    Row(
        "X7",
        "NCCL aborts ranks of a node that is lost (134)",
        (f"{SLURM}only_who_was_asked_to_stop_is_requeued",),
        "requeued",
        "no NCCL here: a rank that ends with 134",
    ),
    Row(
        "X8",
        "several tasks of srun or mpirun without a place among the ranks",
        (
            f"{PLACE}places_that_are_wrong",
            f"{PLACE}places_that_are_right",
            f"{PLACE}every_process_says_it_before_torch_is_imported",
        ),
        "64",
    ),
    Row(
        "X9",
        "a launcher's variables that contradict each other or are no numbers",
        (
            f"{PLACE}places_that_are_wrong",
            f"{PLACE}every_process_says_it_before_torch_is_imported",
        ),
        "64",
    ),
    Row(
        "X10",
        "limits: open files, memory, threads, sizes that overflow",
        (
            f"{COMMAND}what_is_raised_becomes_a_line_and_a_code",
            f"{COMMAND}a_shortage_is_seen_behind_what_came_of_it",
            f"{LAUNCH}streams.py::test_limits_of_the_machine_are_one_line",
            "tests/model/test_config.py::test_messages",
        ),
        "74; 64",
        "CUDA out of memory: by the name of its error",
    ),
    Row(
        "X11",
        "a run of a study is killed under its progress bar",
        (f"{RUNNER}why_a_run_ended", f"{RUNNER}a_run_that_is_killed_says_so"),
        "its reason names the signal",
    ),
    Row(
        "X12",
        "`deepspeed`, or its process on a machine, is ended and the ranks are not",
        (
            f"{PLACE}a_rank_notices_that_deepspeed_is_gone",
            f"{STOP}a_launcher_that_is_gone_is_a_signal",
        ),
        "75, saved",
    ),
)
