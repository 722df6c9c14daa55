"""A file of the wrong kind is called what it is, and the program that takes it is named."""

import dataclasses

import pytest

from sparsecl import config as configs
from sparsecl.config_kinds import DEEPSPEED, RUN, STREAM, STUDY
from sparsecl.engine.deepspeed.ds_keys import ALLOWED, REFUSED
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.study_file import StudyConfig, read_study
from sparsecl.streams.config import StreamRunConfig
from tests.test_command import ROOT

DEMO = ROOT / "launch/configs/demo.yaml"
SMALL_STREAM = ROOT / "launch/streams/small.yaml"
EXP1 = ROOT / "launch/experiments/exp1_density.yaml"


def test_the_kinds_are_told_by_the_keys_that_they_have():
    assert {field.name for field in dataclasses.fields(RunConfig)} == RUN
    assert {field.name for field in dataclasses.fields(StudyConfig)} == STUDY
    assert {field.name for field in dataclasses.fields(StreamRunConfig)} == STREAM
    assert DEEPSPEED <= {*ALLOWED, *REFUSED}


@pytest.mark.parametrize(
    ("cls", "path", "text"),
    [
        (StudyConfig, DEMO, "is a run config: launch/train.py takes it as --config"),
        (RunConfig, EXP1, "is a study: launch/sweep.py takes it"),
        (RunConfig, SMALL_STREAM, "is a stream: launch/stream.py takes it"),
        (StreamRunConfig, DEMO, "is a run config: launch/train.py takes it as --config"),
        (RunConfig, ROOT / "ds_configs/zero2.json", "is a DeepSpeed JSON: launch/train.py takes"),
    ],
)
def test_a_file_of_another_kind(cls, path, text):
    with pytest.raises(UserError) as caught:
        configs.load(cls, path)
    assert str(caught.value).startswith(f"{path}: {text}")


def test_a_study_is_no_base():
    with pytest.raises(UserError, match="exp1_density.yaml: is a study"):
        read_study(EXP1, base=EXP1)


def test_a_mistyped_key_stays_a_mistyped_key(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nsed: 3\narms: {}\n")
    with pytest.raises(UserError, match="study.yaml:2: sed: unknown key; did you mean seeds"):
        configs.load(StudyConfig, path)
    path.write_text("name: a\nzzz: 3\narms: {}\n")
    with pytest.raises(UserError, match="study.yaml:2: zzz: unknown key; known here: name"):
        configs.load(StudyConfig, path)
