"""Faults of what a user gives: configs, text to train on."""

from tests.faults.row import DATA, LAUNCH, SECURE, Row

CONFIGS = (
    Row(
        "K1",
        "a misspelt key",
        (
            f"{LAUNCH}bad_input.py::test_an_unknown_key_names_the_nearest",
            f"{LAUNCH}bad_input.py::test_a_wrong_deepspeed_json",
            "tests/test_config.py::test_a_mistake_gets_one_line",
            "tests/engine/deepspeed/test_ds_config.py::test_a_mistake_gets_one_line",
        ),
        "64",
    ),
    Row(
        "K2",
        "broken YAML or JSON",
        (
            f"{LAUNCH}bad_input.py::test_broken_yaml_names_the_place",
            "tests/test_config.py::test_a_mistake_gets_one_line",
            "tests/engine/deepspeed/test_ds_config.py::test_a_mistake_gets_one_line",
        ),
        "64",
    ),
    Row(
        "K3",
        "a value of the wrong type or range",
        (
            f"{LAUNCH}bad_input.py::test_a_wrong_value_names_its_key",
            f"{LAUNCH}bad_input.py::test_a_wrong_value_in_the_file_names_the_line",
            "tests/test_config.py::test_a_mistake_gets_one_line",
        ),
        "64",
    ),
    Row(
        "K4",
        "tags, shell text and odd paths",
        (
            f"{SECURE}written_files.py::test_yaml",
            f"{SECURE}written_files.py::test_an_override_is_text",
            f"{SECURE}written_files.py::test_shell_text_is_kept_as_text",
            f"{LAUNCH}odd_paths.py::"
            "test_a_folder_with_an_odd_name_holds_a_run_and_nothing_is_executed",
            f"{LAUNCH}odd_paths.py::test_a_line_break_in_a_path_is_no_second_line",
            "tests/test_locks.py::test_a_job_number_is_no_option_and_no_command",
        ),
        "text stays text",
        "quoting in the scripts of slurm/ is not tested here",
    ),
    Row(
        "K5",
        "numbers of the two configs that disagree",
        (
            f"{LAUNCH}bad_input.py::test_a_layout_is_checked_before_any_rank_waits",
            "tests/engine/deepspeed/test_ds_config.py::test_a_mistake_gets_one_line",
        ),
        "64, with the equation",
    ),
    Row(
        "K6",
        "another config on resume",
        (
            f"{LAUNCH}resume.py::test_another_config_is_refused",
            f"{LAUNCH}resume.py::test_settings_that_change_no_result_may_change",
            f"{LAUNCH}changes.py::test_another_config_needs_permission_and_leaves_a_mark",
            "tests/engine/resume/test_changes.py::test_what_no_permission_covers",
        ),
        "64, or --allow_config_change",
    ),
)

TEXT = (
    Row(
        "T1",
        "a data file missing, a folder, or unreadable",
        (
            f"{LAUNCH}bad_input.py::test_a_missing_data_file_is_named",
            "tests/data/sources/test_files.py::test_missing_inputs_are_named",
            "tests/data/sources/test_files.py::test_an_unreadable_file_is_named",
        ),
        "66",
        "unreadable files are skipped where root runs the tests",
    ),
    Row(
        "T2",
        "a token file cut or changed",
        (
            f"{DATA}prepare.py::test_a_truncated_or_changed_token_file_is_refused",
            f"{DATA}prepare.py::test_a_changed_manifest_is_refused",
            f"{SECURE}data.py::test_token_files",
            f"{SECURE}data.py::test_lengths_that_add_up_beyond_the_file",
        ),
        "65",
    ),
    Row(
        "T3",
        "empty or short text",
        (
            f"{LAUNCH}bad_input.py::test_a_broken_data_file_is_named",
            f"{DATA}prepare.py::test_short_domains_are_named",
            f"{DATA}batches.py::test_less_than_one_sequence_is_refused",
            f"{DATA}batches.py::test_one_chunk_is_repeated_for_ever",
            f"{DATA}batches.py::test_windows_with_nothing_to_predict_are_refused",
        ),
        "65",
    ),
    Row(
        "T4",
        "bytes that are no text, NUL, long lines, CRLF",
        (
            "tests/data/sources/test_files.py::test_wrong_content_is_named",
            "tests/data/sources/test_files.py::test_replacement_is_an_explicit_option",
            "tests/data/sources/test_files.py::test_a_large_text_comes_in_pieces",
            f"{DATA}documents.py::test_line_ends_become_newlines_and_long_documents_pieces",
        ),
        "65 with the byte offset",
    ),
    Row(
        "T5",
        "tokens beyond the vocabulary, or of the wrong type",
        (
            f"{LAUNCH}bad_input.py::test_a_token_beyond_the_vocabulary_is_found_before_training",
            f"{LAUNCH}bad_input.py::test_a_token_beyond_the_vocabulary_in_the_manifest",
            f"{DATA}prepare.py::test_ids_beyond_the_vocabulary_are_refused_at_open",
            f"{DATA}prepare.py::test_a_changed_manifest_is_refused",
        ),
        "65",
    ),
    Row(
        "T6",
        "another tokenizer",
        (
            f"{LAUNCH}bad_input.py::test_tokens_of_another_tokenizer",
            f"{LAUNCH}resume.py::test_another_tokenizer_is_refused",
            f"{DATA}tokenizer.py::test_a_swapped_model_is_refused",
            "tests/engine/resume/test_changes.py::test_other_text_needs_its_own_permission",
        ),
        "65",
    ),
    Row(
        "T7",
        "the text changed between two starts",
        (
            f"{LAUNCH}resume.py::test_other_data_is_refused",
            "tests/engine/resume/test_changes.py::test_other_text_needs_its_own_permission",
        ),
        "65, or --allow_data_change",
    ),
    Row(
        "T8",
        "domains missing, repeated or in another order; a kill at a border",
        (
            "tests/engine/resume/test_changes.py::"
            "test_other_domains_are_refused_with_and_without_permission",
            f"{LAUNCH}changes.py::test_a_stop_between_two_domains_goes_on_with_the_second",
            f"{LAUNCH}borders.py::test_a_kill_at_the_end_of_a_domain_and_another_time_zone",
        ),
        "65",
    ),
)
