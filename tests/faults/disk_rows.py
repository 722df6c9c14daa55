"""Faults of what a run writes: checkpoints, disks."""

from tests.faults.row import FAULTS, LAUNCH, RANKS, SAVES, SECURE, Row

CHECKPOINTS = (
    Row(
        "C1",
        "a file that lost its end",
        (
            f"{SAVES}hostile.py::test_every_truncation_is_found",
            f"{SAVES}disk_full.py::test_a_file_that_lost_its_end_is_not_published",
            f"{LAUNCH}resume.py::test_a_torn_checkpoint_is_passed_over",
            f"{LAUNCH}resume.py::test_no_whole_checkpoint_is_no_reason_to_begin_anew",
            f"{LAUNCH}resume.py::test_lost_checkpoints_are_no_reason_to_begin_anew",
            f"{LAUNCH}resume.py::test_a_run_begins_anew_only_if_it_can_have_had_no_checkpoint",
        ),
        "an older one is used; 65 if none is whole, or all are gone",
    ),
    Row(
        "C2",
        "one bit flipped in any file",
        (
            f"{SAVES}hostile.py::test_single_bits_are_found",
            f"{SAVES}hostile.py::test_the_digest_is_checked_before_anything_else",
            f"{LAUNCH}resume.py::test_a_torn_checkpoint_is_passed_over",
        ),
        "as C1",
        "bits are drawn over the whole of every file, not all of them tried",
    ),
    Row(
        "C3",
        "a file missing, added or of another step",
        (
            f"{SAVES}hostile.py::test_swapped_and_mixed_shards",
            f"{LAUNCH}resume.py::test_a_torn_checkpoint_is_passed_over",
        ),
        "as C1",
    ),
    Row(
        "C4",
        "`latest` empty, garbage, or leading elsewhere",
        (
            f"{SAVES}hostile.py::test_what_latest_says_is_a_hint",
            f"{SAVES}hostile.py::test_latest_is_not_followed",
        ),
        "goes on, with a note",
    ),
    Row(
        "C5",
        "--resume must without a checkpoint",
        (f"{LAUNCH}bad_input.py::test_must_needs_a_checkpoint",),
        "66",
    ),
    Row(
        "C6",
        "masks of another seed, density or layer",
        (
            f"{FAULTS}swapped_masks.py::test_other_masks_are_refused",
            f"{LAUNCH}resume.py::test_a_moved_weight_is_found",
            "tests/engine/resume/test_changes.py::test_another_topology_is_never_allowed",
        ),
        "65",
    ),
    Row(
        "C7",
        "a weight or moment outside of the mask",
        (
            f"{LAUNCH}resume.py::test_a_moved_weight_is_found",
            f"{SAVES}hostile.py::test_hostile_live_sets",
            f"{RANKS}packed.py::test_a_checkpoint_holds_live_weights_only",
            f"{RANKS}adversarial.py::test_the_audit_names_layer_copy_and_rank",
        ),
        "65 in a checkpoint, 70 in memory",
        "the format has no place for such a value: only live weights are saved",
    ),
    Row(
        "C8",
        "ranks with unlike masks",
        (f"{RANKS}bad_steps.py::test_unlike_masks_are_found",),
        "70 at the next audit",
    ),
    Row(
        "C9",
        "another number of ranks, another ZeRO stage",
        (
            f"{RANKS}restore.py::test_other_layouts_get_the_same_tensors",
            f"{FAULTS}layout_change.py::test_no_sequence_is_lost_or_read_twice",
        ),
        "the same tensors, each sequence once",
    ),
    Row(
        "C10",
        "another tensor-parallel size",
        (
            f"{RANKS}restore.py::test_other_layouts_get_the_same_tensors",
            f"{RANKS}layouts.py::test_initial_weights_and_masks_are_those_of_one_process",
            f"{FAULTS}layout_change.py::test_no_sequence_is_lost_or_read_twice",
            f"{SAVES}rewrite.py::test_there_and_back_is_the_identity",
        ),
        "as C9",
    ),
    Row(
        "C11",
        "sizes that do not divide",
        (
            f"{LAUNCH}bad_input.py::test_a_layout_is_checked_before_any_rank_waits",
            "tests/model/test_config.py::test_tensor_parallel_sizes",
            "tests/model/test_config.py::test_padded_vocabulary",
            f"{SAVES}rewrite.py::test_what_does_not_divide_is_refused",
        ),
        "64; the vocabulary is padded",
    ),
    Row(
        "C12",
        "another precision",
        (f"{FAULTS}precision_change.py::test_masters_stay_and_the_scale_is_that_of_the_new_run",),
        "goes on with the same masters",
    ),
    Row(
        "C13",
        "the optimizer's state is not all there",
        (f"{LAUNCH}broken_runs.py::test_a_lost_optimizer_is_refused_unless_allowed",),
        "65; --weights_only goes on",
    ),
    Row(
        "C14",
        "pickles in place of any file",
        (
            f"{SAVES}hostile.py::test_no_pickle_is_ever_opened",
            f"{SAVES}hf.py::test_a_pickle_is_never_executed",
            f"{SECURE}masks.py::test_a_pickle_under_another_name",
            f"{SECURE}data.py::test_token_files",
            f"{SECURE}written_files.py::test_a_pickle_is_no_yaml",
            f"{SECURE}run_folder.py::test_a_whole_file_that_is_a_pickle",
        ),
        "65, nothing executed",
    ),
    Row(
        "C15",
        "headers and JSON that ask for too much",
        (
            f"{SAVES}hostile.py::test_hostile_safetensors",
            f"{SAVES}hostile.py::test_hostile_manifests",
            f"{SAVES}hostile.py::test_what_is_no_manifest",
            f"{SAVES}hostile.py::test_few_indices_do_not_become_a_gigabyte",
        ),
        "65, nothing allocated",
    ),
    Row(
        "C16",
        "a checkpoint of another format version",
        (f"{SAVES}hostile.py::test_hostile_manifests",),
        "65, named",
    ),
    Row(
        "C17",
        "links, and paths that lead outside",
        (
            f"{SAVES}hostile.py::test_only_plain_files_are_opened",
            f"{SAVES}hostile.py::test_a_linked_folder_is_no_candidate",
            f"{SAVES}hostile.py::test_hostile_manifests",
        ),
        "65",
    ),
)

DISKS = (
    Row(
        "D1",
        "the disk is full",
        (
            f"{SAVES}disk_full.py::test_a_full_disk",
            f"{SAVES}disk_full.py::test_all_ranks_hear_of_a_full_disk",
            f"{LAUNCH}broken_runs.py::"
            "test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint",
            f"{LAUNCH}broken_runs.py::test_a_full_disk_may_cost_a_checkpoint_only",
            "tests/test_log.py::test_a_disk_that_fills_up_and_is_emptied",
            "tests/test_log.py::test_tensorboard_that_cannot_start",
        ),
        "74, or goes on if checkpoint.on_failure says so",
        "RLIMIT_FSIZE and injected ENOSPC, not a full file system",
    ),
    Row(
        "D2",
        "a folder read-only or gone; the disk fails",
        (
            f"{FAULTS}read_only.py::test_a_folder_that_has_become_read_only",
            f"{FAULTS}read_only.py::test_a_folder_that_has_vanished",
            f"{LAUNCH}lost_folder.py::"
            "test_a_folder_that_vanishes_ends_the_run_with_its_checkpoints_whole",
            f"{SAVES}disk_full.py::test_an_error_at_any_point",
            f"{LAUNCH}bad_input.py::test_a_folder_that_cannot_be_made",
        ),
        "73 or 74",
        "EIO is injected; a slow NFS is a slow save, which the watchdog allows an hour",
    ),
    Row(
        "D3",
        "retention with one whole checkpoint left",
        (
            f"{SAVES}publish.py::test_retention_keeps_the_newest",
            f"{SAVES}publish.py::test_a_kill_anywhere_leaves_one_valid_newest",
            f"{LAUNCH}resume.py::test_a_torn_checkpoint_takes_no_place_of_a_whole_one",
        ),
        "it stays",
    ),
    Row(
        "D4",
        "a power cut loses what no fsync covers",
        (
            f"{SAVES}power_cut.py::test_a_power_cut_at_any_moment",
            f"{SAVES}power_cut.py::test_the_model_sees_what_is_wrong",
        ),
        "last good checkpoint",
        "a model of the disk; no real power was cut",
    ),
)
