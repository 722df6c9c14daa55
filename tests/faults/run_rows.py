"""Faults of a run and around it: processes, numbers, jobs."""

from tests.faults.row import FAULTS, LAUNCH, RANKS, SAVES, Row

PROCESSES = (
    Row(
        "P1",
        "SIGKILL of one rank in a step",
        (
            f"{LAUNCH}kill.py::test_one_kill",
            f"{LAUNCH}kill.py::test_two_ranks",
            f"{LAUNCH}broken_runs.py::test_a_lost_rank_ends_the_others",
        ),
        "survivors end with 76 in 35 s; the same run bit for bit",
        "one node: what other nodes do hangs on their collective timeout",
    ),
    Row(
        "P2",
        "SIGKILL of all ranks in a step",
        (f"{LAUNCH}kill.py::test_two_ranks", f"{LAUNCH}kill.py::test_many_kills_in_one_run"),
        "bit for bit",
    ),
    Row(
        "P3",
        "SIGKILL while a rank writes its file",
        (
            f"{SAVES}kills.py::test_twelve_kills",
            f"{SAVES}kills.py::test_two_hundred_kills",
            f"{SAVES}kills.py::test_a_kill_of_the_background_writer",
            f"{LAUNCH}kill.py::test_two_ranks_killed_in_a_save",
        ),
        "last good checkpoint",
    ),
    Row(
        "P4",
        "SIGKILL at each border of publication",
        (
            f"{SAVES}publish.py::test_a_kill_anywhere_leaves_one_valid_newest",
            f"{SAVES}kills.py::test_two_hundred_kills",
        ),
        "one newest checkpoint, whole",
    ),
    Row(
        "P5",
        "leftovers of a dead run; the same step saved again",
        (
            f"{SAVES}kills.py::test_twelve_kills",
            f"{SAVES}kills.py::test_a_step_that_is_saved_again_is_never_without_a_checkpoint",
            f"{LAUNCH}kill.py::test_two_ranks_killed_in_a_save",
        ),
        "goes on",
    ),
    Row(
        "P6",
        "SIGTERM, SIGUSR1 or SIGINT, also twice",
        (
            f"{LAUNCH}stop.py::test_a_signal_is_answered_after_the_step",
            f"{LAUNCH}stop.py::test_before_the_first_step_there_is_nothing_to_save",
        ),
        "75",
        "sent to the ranks; that a launcher passes it on is the launcher's",
    ),
    Row(
        "P7",
        "a signal to one rank only",
        (f"{LAUNCH}stop.py::test_a_signal_to_one_rank_stops_all_after_the_same_step",),
        "75 on all ranks",
    ),
    Row(
        "P8",
        "time limit of a Slurm job",
        (f"{LAUNCH}stop.py::test_a_signal_is_answered_after_the_step",),
        "75",
        "the signal alone; requeueing belongs to the scripts in slurm/",
    ),
    Row(
        "P9",
        "twenty random kills in one run of two ranks",
        (f"{LAUNCH}punisher.py::test_twenty_kills",),
        "bit for bit",
    ),
    Row(
        "P10",
        "an exception on one rank",
        (f"{LAUNCH}broken_runs.py::test_a_lost_rank_ends_the_others",),
        "70 there, 76 on the others, in 60 s on a busy machine",
    ),
    Row(
        "P11",
        "a rank that hangs or is stopped",
        (
            f"{LAUNCH}broken_runs.py::test_a_rank_that_hangs_is_named",
            "tests/test_watchdog.py::test_a_hang_ends_with_place_peers_and_stacks",
            "tests/test_watchdog.py::test_a_store_that_does_not_answer_holds_up_nobody",
            "tests/test_watchdog.py::test_a_long_save_is_not_waited_for_if_a_rank_stands_still",
            "tests/test_watchdog.py::test_a_long_save_is_waited_for_while_all_ranks_live",
            "tests/test_watchdog.py::test_a_suspended_process_starts_counting_anew",
        ),
        "76 after health.hang_seconds",
        "a thread that keeps the interpreter's lock silences its own watchdog; peers bite",
    ),
    Row(
        "P12",
        "one rank is slow",
        (
            f"{FAULTS}stragglers.py::test_by_hand",
            f"{FAULTS}stragglers.py::test_a_run_with_a_slow_rank_goes_on",
        ),
        "goes on; the rank is named, its ratio drawn",
        "the clock of the GPU is not tested; ZeRO-3 and tensor parallelism hide a slow forward",
    ),
    Row(
        "P13",
        "a collective skipped, or of another size",
        (f"{FAULTS}out_of_step.py::test_ranks_that_are_out_of_step_end",),
        "76 after health.hang_seconds; gloo itself aborts at another size",
    ),
)

NUMBERS = (
    Row(
        "N1",
        "NaN loss on one rank",
        (
            f"{RANKS}bad_steps.py::test_a_bad_step_changes_no_bit_on_any_rank",
            f"{RANKS}bad_steps.py::test_a_run_of_bad_steps_ends_with_what_each_rank_saw",
        ),
        "step discarded; 70 after health.max_bad_steps",
    ),
    Row(
        "N2",
        "fp16 overflow",
        (
            f"{FAULTS}fp16.py::test_overflows_down_to_the_lowest_scale",
            f"{RANKS}adversarial.py::test_fp16_steps_that_overflow",
        ),
        "step discarded, scale halved; 70 at the lowest scale",
        "on the CPU; a fixed fp16 loss scale has no lowest one, and is not stopped",
    ),
    Row(
        "N3",
        "infinite gradient under bf16",
        (f"{RANKS}bad_steps.py::test_a_bad_step_changes_no_bit_on_any_rank",),
        "step discarded",
    ),
    Row(
        "N4",
        "the loss jumps",
        (
            f"{LAUNCH}broken_runs.py::test_a_spike_is_never_silent",
            f"{LAUNCH}broken_runs.py::test_a_spike_is_rolled_back_and_its_data_left_out",
        ),
        "goes on; logged",
    ),
    Row(
        "N5",
        "NaN outside of the mask",
        (
            f"{RANKS}adversarial.py::test_garbage_in_state_is_gone_after_the_step",
            f"{RANKS}adversarial.py::test_a_gradient_of_an_absent_weight_ends_the_run",
            "tests/sparse/test_masked.py::test_nothing_leaks_into_absent_weights",
            "tests/optim/test_zero_absent.py::"
            "test_absent_entries_become_plus_zero_whatever_they_were",
        ),
        "zero again, or 70 at the audit",
    ),
    Row(
        "N6",
        "a bit of a live weight flips on one rank",
        (f"{RANKS}bad_steps.py::test_a_flipped_bit_is_found",),
        "70 at the next audit",
    ),
    Row(
        "N7",
        "a layer or slice without live weights",
        (
            f"{LAUNCH}bad_input.py::test_a_wrong_value_names_its_key",
            "tests/topology/test_build.py::test_messages_begin_with_the_key_and_name_the_layer",
            "tests/engine/test_topology.py::test_a_slice_without_live_weights_is_refused_for_all_ranks",
            "tests/topology/test_report.py::test_the_table_has_one_line_per_kind",
        ),
        "64",
        "single dead rows are counted per kind of layer in the table of the start, not warned of",
    ),
)

JOBS = (
    Row(
        "J1",
        "two jobs in one folder",
        (
            f"{LAUNCH}bad_input.py::test_a_folder_in_use_is_left_alone",
            "tests/test_locks.py::test_a_lock_names_its_owner_and_is_emptied_by_close",
            f"{LAUNCH}sweep.py::test_two_runners_do_not_share_a_folder",
        ),
        "73",
    ),
    Row(
        "J2",
        "a lock whose owner may be gone",
        (
            "tests/test_locks.py::test_a_killed_owner_is_followed_at_once",
            "tests/test_locks.py::test_an_owner_of_this_host_without_a_lock_is_gone",
            "tests/test_locks.py::test_an_owner_on_another_host_is_not_provably_gone",
            "tests/test_locks.py::test_slurm_knows_whether_a_job_is_gone",
            "tests/test_locks.py::test_a_requeued_job_takes_its_own_folder",
        ),
        "73, or taken over",
        "squeue is a script of the test",
    ),
    Row(
        "J3",
        "the port is in use; nobody at MASTER_ADDR",
        (
            f"{LAUNCH}meeting.py::test_a_port_in_use_is_said_with_the_way_out",
            f"{LAUNCH}meeting.py::test_an_address_where_nobody_is",
        ),
        "64; 76 after health.join_seconds",
    ),
    Row(
        "J4",
        "a clock that jumps; another time zone",
        (
            "tests/test_log.py::test_a_clock_that_jumps_between_two_starts",
            "tests/test_log.py::test_a_clock_that_is_set_back_in_a_run",
            f"{LAUNCH}borders.py::test_a_kill_at_the_end_of_a_domain_and_another_time_zone",
        ),
        "goes on",
    ),
    Row(
        "J5",
        "a rank that does not come",
        (f"{LAUNCH}broken_runs.py::test_ranks_that_do_not_come_are_named",),
        "76 after health.join_seconds, naming it",
    ),
    Row(
        "J6",
        "no GPU, or no NCCL",
        (
            "tests/engine/test_devices.py::"
            "test_a_gpu_build_without_a_gpu_says_that_it_uses_the_cpu",
            "tests/engine/test_devices.py::test_several_gpus_need_nccl",
            f"{LAUNCH}bad_input.py::test_a_wrong_value_names_its_key",
        ),
        "gloo on the CPU, or 64",
        "whether GPU and NCCL are there is simulated",
    ),
)
