"""Sealed lines: what they vouch for, by hand and for every single bit."""

import hashlib
import json

import pytest

from sparsecl.seal import EMPTY, Extent, seal, sealed_lines


def file_of(*lines: tuple[dict, bool]) -> bytes:
    content = b""
    for record, sealed in lines:
        line = json.dumps(record).encode() + b"\n"
        content += seal(line, hashlib.sha256(content)) if sealed else line
    return content


def test_a_seal_by_hand():
    content = file_of(({"a": 1}, False), ({"b": 2}, True))
    digest = hashlib.sha256(b'{"a": 1}\n{"b": 2').hexdigest()
    assert content == b'{"a": 1}\n{"b": 2, "sealed": "' + digest.encode() + b'"}\n'
    assert json.loads(content.splitlines()[1]) == {"b": 2, "sealed": digest}
    assert list(sealed_lines(content)) == [
        (b'{"a": 1}\n', False),
        (content.removeprefix(b'{"a": 1}\n'), True),
    ]
    assert Extent.of(content) == Extent(len(content), hashlib.sha256(content).hexdigest())
    assert list(sealed_lines(b"")) == [] and Extent.of(b"") == EMPTY


@pytest.mark.fault("R1")
def test_every_bit_before_the_last_seal_counts():
    """A change is seen, or the line has lost its seal, which a reader who expects one misses."""
    content = file_of(({"a": 1}, True), ({"b": [2, 3]}, False), ({"c": "x"}, True))
    for place in range(8 * (len(content) - 1)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        try:
            assert [sealed for _, sealed in sealed_lines(bytes(changed))][-1] is False
        except ValueError as error:
            assert "sha256 differs" in str(error)


@pytest.mark.parametrize("extra", [b'{"d": 4}\n', b'{"d"'])
def test_what_follows_the_last_seal_is_not_vouched_for(extra):
    content = file_of(({"a": 1}, True)) + extra
    assert [sealed for _, sealed in sealed_lines(content)] == [True, False]
