"""Text of the installation: prose and sessions parted, the same for every caller."""

import subprocess
import sys
from pathlib import Path

import pytest

from sparsecl.data.config import INSTALLED_DOMAINS, DomainConfig
from sparsecl.data.sources import docstrings, installed, open_source
from sparsecl.errors import MissingInputError

DOCSTRING = """Add two numbers, with a sentence that is long enough to be kept as prose in the end.

Examples
========

>>> from adder import add
>>> def twice(x):
...     return add(x, x)
>>> twice(2)
4
>>> print("a")
a
b

More text after the session, which belongs to the prose again.
"""


def source(name):
    return open_source(DomainConfig(name=name, source="installed"), seed=0, max_document_bytes=1000)


def test_prose_and_sessions_part_a_docstring():
    prose, dialogue = docstrings.prose(DOCSTRING), docstrings.dialogue(DOCSTRING)
    assert dialogue.splitlines() == [
        "User: from adder import add",
        "User: def twice(x):",
        "      return add(x, x)",
        "User: twice(2)",
        "Python: 4",
        'User: print("a")',
        "Python: a",
        "  b",
    ]
    assert prose.splitlines()[0].startswith("Add two numbers")
    assert prose.splitlines()[-1].startswith("More text after")
    assert ">>>" not in prose and "twice" not in prose


def test_short_and_empty_docstrings_give_nothing():
    assert docstrings.prose("See the base class.") == docstrings.dialogue("No session.") == ""


def test_docstrings_are_read_without_importing(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "_private").mkdir()
    for name in ("tests/t.py", "_private/p.py"):
        (tmp_path / name).write_text('"""skipped"""')
    (tmp_path / "b.py").write_text(
        '"""module"""\nraise SystemExit\nif True:\n    class A:\n        """class"""\n'
        '        async def f(self):\n            """method"""\n'
    )
    (tmp_path / "a.py").write_text('def f(:\n    """broken syntax"""')
    (tmp_path / "_torch_docs.py").write_text('add(x, r"""first""")\nadd(y, """second""" + z)')
    found, reads = docstrings.docstrings(tmp_path)
    assert sorted(found) == ["class", "first", "method", "module", "second"]
    assert found[-3:] == ("module", "class", "method")
    assert str(tmp_path / "b.py") in reads and len(reads) == 3


@pytest.mark.parametrize("name", ["code", "legal"])
def test_the_environment_gives_enough_text(name):
    documents = list(source(name).texts("train"))
    assert sum(map(len, documents)) > 500_000
    assert list(source(name).texts("validation")) == []


def test_sessions_of_one_package_are_dialogue():
    folder = installed._package_folder("numpy")
    assert folder is not None
    documents = [d for d in installed._dialogue([folder], {}) if d]
    assert sum(map(len, documents)) > 100_000
    assert all(d.startswith("User: ") for d in documents)


def test_code_holds_no_tests_and_no_packages():
    root = Path(installed.sysconfig.get_path("stdlib"))
    documents = list(source("code").texts("train"))
    assert (root / "heapq.py").read_text() in documents
    assert (root / "encodings" / "cp1252.py").read_text() not in documents


def test_the_key_names_versions_and_does_not_depend_on_imports():
    keys = {name: source(name).key for name in INSTALLED_DOMAINS}
    assert set(keys["math"]["versions"]) == {"python", "sympy"}
    code = (
        "import setuptools, sys\n"  # adds vendored packages to the search path
        "from sparsecl.data.sources import open_source\n"
        "from sparsecl.data.config import DomainConfig\n"
        "d = DomainConfig(name='legal', source='installed')\n"
        "print(open_source(d, seed=0, max_document_bytes=1).key)\n"
        "assert 'torch' not in sys.modules and 'sympy' not in sys.modules\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(keys["legal"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingInputError, match="domain math: .*reads the package sympy, which is"):
        source("math")
