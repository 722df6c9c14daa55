"""Hostile input, and what must come of it: one line, an exit code, and a canary that is silent."""

import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsecl.errors import UserError

MAX_MEMORY = 32 << 20  # bytes that a refusal may take; bombs claim gigabytes


class Canary:
    """A file that appears if input is run as code."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "canary"

    @property
    def command(self) -> str:
        """Shell text that makes it sing."""
        return f"touch {self.path}"

    @property
    def sang(self) -> bool:
        return self.path.exists()

    def pickle(self, protocol: int = 4) -> bytes:
        """A pickle that makes it sing when it is loaded."""
        return pickle.dumps(_Payload(self.command), protocol=protocol)


class _Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def refused(load: Callable[[], Any], canary: Canary, *codes: int) -> str:
    """The one line with which `load` refuses its input, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            load()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert caught.value.exit_code in (codes or (64, 65)), line
    assert line.isprintable() and 10 < len(line) < 1500, line
    assert not canary.sang
    assert peak < MAX_MEMORY
    return line


def harmless(load: Callable[[], Any], canary: Canary) -> Any:
    """What `load` returns, or its refusal; nothing else may come of damaged input."""
    try:
        return load()
    except UserError as error:
        assert error.exit_code in (64, 65, 66) and str(error).isprintable(), error
        return error
    finally:
        assert not canary.sang


# Hostile text for readers of YAML or JSON, by name. CANARY stands for shell text.
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)
YAMLS = {
    "python tag": "name: !!python/object/apply:os.system ['CANARY']\n",
    "python tag on a key": "!!python/object/apply:os.system ['CANARY']: 1\n",
    "python name": "name: !!python/name:os.system\n",
    "tag by prefix": "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system [CANARY]\n",
    "aliases of aliases": LAUGHS,
    "alias of itself": "a: &a [*a]\n",
    "merge": "a: &a {name: x}\nb: {<<: *a}\n",
    "depth": "name: " + "[" * 20_000,
    "depth by indent": "".join("  " * k + f"k{k}:\n" for k in range(200)),
    "repeated key": "name: a\nname: b\n",
    "huge": "name: " + "x" * (2 << 20),
    "control character": "name: \x1b[2J\n",
    "second document": "name: a\n---\nname: b\n",
    "list": "- a\n",
}
JSONS = {
    "repeated key": '{"bf16": {"enabled": false}, "bf16": {"enabled": true}}',
    "repeated key inside": '{"bf16": {"enabled": false, "enabled": true}}',
    "depth": '{"a": ' + "[" * 100_000,
    "depth of objects": '{"a": ' * 100_000,
    "huge": '{"a": "' + "x" * (2 << 20) + '"}',
    "huge number": '{"train_batch_size": ' + "9" * 5000 + "}",
    "not finite": '{"gradient_clipping": Infinity}',
    "overflow": '{"gradient_clipping": 1e999}',
    "list": "[1]",
    "comment": '{"a": 1} // CANARY',
    "python": "__import__('os').system('CANARY')",
    "base64": "eyJ6ZXJvX29wdGltaXphdGlvbiI6IHsic3RhZ2UiOiAyfX0=",
}
