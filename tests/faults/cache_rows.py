"""Faults of the data cache, of readers and of data preparation."""

from tests.faults.row import DATA, FAULTS, LAUNCH, SECURE, Row

SOURCES = "tests/data/sources/test_"

CACHES: tuple[Row, ...] = (
    Row(
        "H1",
        "an entry of the data cache swapped, renamed or copied over another; links and pipes in it",
        (
            f"{DATA}cache.py::test_an_entry_of_another_key_is_refused",
            f"{DATA}cache.py::test_an_entry_of_another_name_or_group_is_refused",
            f"{DATA}cache.py::test_links_and_pipes_inside_a_cache_are_refused",
            f"{DATA}cache.py::test_a_whole_entry_needs_no_write_access",
        ),
        "65",
    ),
    Row(
        "H2",
        "cached text or a manifest altered",
        (
            f"{DATA}tokenize.py::test_text_that_was_changed_gives_no_tokens",
            f"{DATA}cache.py::test_a_changed_manifest_is_named",
            f"{SECURE}data.py::test_text_files",
        ),
        "65",
        "a manifest that is sealed anew with its data is believed: no key is secret",
    ),
    Row(
        "H3",
        "token files overwritten, cut or replaced while a run reads them",
        (
            f"{LAUNCH}changed_tokens.py::test_a_run_ends_at_the_next_border_and_saves_nothing",
            f"{DATA}held_file.py::test_whoever_writes_is_found",
            f"{DATA}held_file.py::test_a_change_in_the_tick_of_the_last_one_is_found",
            f"{DATA}held_file.py::test_a_file_that_is_cut_is_no_signal",
            f"{DATA}held_file.py::test_another_file_under_its_name_changes_nothing",
        ),
        "65 before the next record or save; a replaced file is not read",
        "no network file system was tried",
    ),
    Row(
        "H4",
        "the disk is full, fails or forbids while data is prepared",
        (
            f"{DATA}full_disk.py::test_a_disk_that_is_really_full",
            f"{DATA}full_disk.py::test_every_file_that_is_written",
            f"{DATA}full_disk.py::test_a_source_that_fails_is_no_fault_of_the_cache",
            f"{DATA}full_disk.py::test_the_cache_of_datasets_is_full",
            f"{DATA}full_disk.py::test_a_set_of_digests_that_is_cut_is_no_signal",
        ),
        "74 or 73, nothing left over",
        "a full tmpfs where one can be mounted; else injected errors only",
    ),
    Row(
        "H5",
        "a source file edited with the same size and time",
        (
            f"{DATA}check_sources.py::"
            "test_an_edit_that_nothing_shows_is_found_when_it_is_asked_for",
            f"{DATA}check_sources.py::test_of_a_file_that_was_read_in_part_that_part_counts",
            f"{DATA}check_sources.py::test_a_dataset_in_a_local_folder",
            f"{DATA}check_sources.py::test_files_of_the_installation_are_noted",
        ),
        "65 with --check_sources",
    ),
    Row(
        "H6",
        "a process that makes tokens is killed",
        (f"{DATA}tokenize.py::test_a_process_that_is_killed_is_named_with_its_signal",),
        "76, its signal is named",
    ),
    Row(
        "H7",
        "small files that unpack to gigabytes",
        (
            f"{SOURCES}bombs.py::test_one_line_of_a_gigabyte",
            f"{SOURCES}bombs.py::test_a_gigabyte_without_a_line_end_in_plain_text",
            f"{SOURCES}bombs.py::test_a_dictionary_that_every_row_repeats",
            f"{SOURCES}bombs.py::test_one_cell_of_many",
            f"{SOURCES}bombs.py::test_sizes_that_the_file_admits",
        ),
        "65, in 1.5 GiB of address space",
        "a parquet page whose header lies, and what `datasets` takes, are not bounded by us",
    ),
    Row(
        "H8",
        "flips, cuts and swaps anywhere in a data cache",
        (f"{FAULTS}cache_damage.py::test_damage_anywhere_in_a_cache_changes_nothing_unseen",),
        "65, or the same tokens",
    ),
)
