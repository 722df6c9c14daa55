"""Paths that a shell, a log or a table would take apart."""

from pathlib import Path

import pytest

from tests.launch.starter import tiny

ODD = "odd; touch CANARY; $(touch CANARY) `touch CANARY` 'a\" {x} %s"


@pytest.mark.fault("K4")
def test_a_folder_with_an_odd_name_holds_a_run_and_nothing_is_executed(starter):
    folder = starter.folder / ODD
    data = {**tiny(starter.cache)["data"], "cache_dir": str(starter.folder / f"cache {ODD}")}
    config = starter.config(data=data, phases={"steps": 2})
    done = starter.run("--run_dir", str(folder), config=config)
    assert done.code == 0, done.err
    assert (folder / "results.json").is_file() and (folder / "config.yaml").is_file()
    again = starter.run("--run_dir", str(folder), config=folder / "config.yaml")
    assert again.code == 0 and "finished before" in again.out
    assert not list(starter.folder.rglob("CANARY"))


@pytest.mark.fault("K4")
@pytest.mark.parametrize(
    ("word", "code"), [("--config", 66), ("--ds_config", 66), ("--run_dir", 73)]
)
def test_a_line_break_in_a_path_is_no_second_line(starter, word, code):
    (starter.folder / "file").write_text("")
    path = Path(starter.folder / "file" / "a\nsparsecl: all is well\n.yaml")
    done = starter.start(starter.arguments(word, str(path))).wait()
    assert (done.code, done.out) == (code, "")
    assert "all is well" in done.line
