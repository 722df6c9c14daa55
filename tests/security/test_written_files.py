"""Run configs, study files, plans and DeepSpeed JSONs that are meant to do harm."""

import pickle
from pathlib import Path

import pytest

from sparsecl import config as configs
from sparsecl.engine.deepspeed.ds_json import read_json
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.study_file import read_study
from sparsecl.experiments.study.study_plan import PLAN, read_plan
from tests.experiments.fake_study import FakeArm, write_study
from tests.security.canary import JSONS, YAMLS, Canary, refused

YAML_READERS = {
    "run.yaml": lambda path: configs.load(RunConfig, path),
    "study.yaml": read_study,
    PLAN: lambda path: read_plan(path.parent),
}


def test_the_canary_sings(canary):
    """Else its silence would prove nothing."""
    pickle.loads(canary.pickle())
    assert canary.sang


@pytest.mark.fault("K4")
@pytest.mark.parametrize("name", list(YAML_READERS))
@pytest.mark.parametrize("kind", list(YAMLS))
def test_yaml(tmp_path, canary, name, kind):
    path = tmp_path / name
    path.write_text(YAMLS[kind].replace("CANARY", canary.command))
    assert str(path) in refused(lambda: YAML_READERS[name](path), canary)


@pytest.mark.fault("C14")
@pytest.mark.parametrize("name", list(YAML_READERS))
def test_a_pickle_is_no_yaml(tmp_path, canary, name):
    for protocol in (0, 4):
        (tmp_path / name).write_bytes(canary.pickle(protocol))
        refused(lambda: YAML_READERS[name](tmp_path / name), canary)


@pytest.mark.fault("K4")
def test_an_override_is_text(canary):
    for text in ("name=!!python/object/apply:os.system ['{}']", "name=`{}`", "name=$({})"):
        override = text.format(canary.command)
        assert "--set" in refused(lambda o=override: configs.load(RunConfig, None, [o]), canary, 64)


@pytest.mark.fault("K4")
def test_shell_text_is_kept_as_text(tmp_path, canary):
    path = tmp_path / "run.yaml"
    text = f"$({canary.command}) ; `{canary.command}` ${{HOME}}"
    path.write_text(f"data: {{cache_dir: '{text}'}}\n")
    assert str(configs.load(RunConfig, path).data.cache_dir) == text
    assert not canary.sang


@pytest.mark.parametrize("kind", list(JSONS))
def test_deepspeed_json(tmp_path, canary, kind):
    path = tmp_path / "ds.json"
    path.write_text(JSONS[kind].replace("CANARY", canary.command))
    assert str(path) in refused(lambda: read_json(path), canary, 64)


def test_a_pickle_is_no_json(tmp_path, canary):
    path = tmp_path / "ds.json"
    for protocol in (0, 4):
        path.write_bytes(canary.pickle(protocol))
        refused(lambda: read_json(path), canary)


@pytest.mark.parametrize("arm", ["..", "../../etc", "/etc", "a/b", "a\\nb", "-rf", ""])
def test_a_plan_names_no_folder_outside_of_its_own(tmp_path, canary, arm):
    write_study(tmp_path, [FakeArm(name="dense"), FakeArm(name="er")], seeds=(0,))
    path: Path = tmp_path / PLAN
    text = path.read_text()
    assert text.count('"arm": "er"') == 1
    path.write_text(text.replace('"arm": "er"', f'"arm": "{arm}"'))
    with pytest.raises(UserError, match="cannot name a folder"):
        read_plan(tmp_path)
    assert isinstance(canary, Canary) and not canary.sang
