"""Processes that make tokens, and what becomes of them."""

import os
import signal
from pathlib import Path

import pytest
from tqdm import tqdm

from sparsecl.data import tokenize
from sparsecl.data.config import DomainConfig
from sparsecl.data.domain_text import DomainText
from sparsecl.data.text_store import TextWriter
from sparsecl.data.tokenize import write_tokens
from sparsecl.data.tokenizer import BytesTokenizer
from sparsecl.errors import DataError, WorkerLostError


class Deadly(BytesTokenizer):
    """Ends its process by a signal at the text that says so."""

    def encode(self, text):
        if text.startswith("signal "):
            os.kill(os.getpid(), int(text.split()[1]))
        if text.startswith("exit "):
            os._exit(int(text.split()[1]))
        return super().encode(text)


@pytest.fixture
def pool(monkeypatch):
    """Small texts are worth processes too."""
    monkeypatch.setattr(tokenize, "_BYTES_WORTH_A_POOL", 0)
    monkeypatch.setattr(tokenize, "_SPAN_CHARACTERS", 200)


def tokens_of(folder: Path, documents):
    (folder / "text").mkdir()
    (folder / "tokens").mkdir()
    counts = {}
    for split in ("train", "validation"):
        with TextWriter(folder / "text", split) as writer:
            for document in documents:
                writer.append(document.encode(), bytes(16), bytes(16))
        counts[split] = writer.summary()
    text = DomainText(DomainConfig(name="code", source="installed"), folder / "text", counts)
    with tqdm(disable=True) as progress:
        return write_tokens(text, Deadly(), folder / "tokens", workers=2, progress=progress)


@pytest.mark.fault("H6")
@pytest.mark.parametrize(
    ("last", "how"),
    [
        (f"signal {int(signal.SIGKILL)}", "by SIGKILL"),
        (f"signal {int(signal.SIGTERM)}", "by SIGTERM"),
        ("exit 3", "with code 3"),
    ],
)
def test_a_process_that_is_killed_is_named_with_its_signal(tmp_path, pool, capfd, last, how):
    documents = [f"document {n} of some length" for n in range(50)]
    with pytest.raises(WorkerLostError, match=f"a process that makes tokens was ended {how}. If"):
        tokens_of(tmp_path, [*documents, last, *documents])
    assert WorkerLostError.exit_code == 76
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.fault("H2")
def test_text_that_was_changed_gives_no_tokens(tmp_path, pool, monkeypatch):
    close = TextWriter.__exit__

    def change(self, *words):
        close(self, *words)
        path = Path(self._text.name)
        path.write_bytes(path.read_bytes().replace(b"7 of", b"8 of"))

    monkeypatch.setattr(TextWriter, "__exit__", change)
    with pytest.raises(DataError, match="train.text: was changed, or its lengths were; delete"):
        tokens_of(tmp_path, [f"document {n} of some length" for n in range(50)])
