"""engine/build.py: what is put off until it is needed."""

import torch

from sparsecl.engine import build


def test_a_function_is_compiled_when_it_is_first_called(monkeypatch):
    def double(x):
        return 2 * x

    compiled = []

    def compiler(function):
        compiled.append(function)
        return lambda x: function(x) + 1

    monkeypatch.setattr(torch, "compile", compiler)
    later = build._compiled_at_first_call(double)
    assert compiled == [] and later.__name__ == "double"
    assert [later(1), later(2)] == [3, 5]
    assert compiled == [double]
