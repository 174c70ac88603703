"""A call of the command in this process, with its flags."""

import types

import pytest
from absl import flags

from lm_jax.plan import __main__ as command

DEFAULTS = {"mesh": "", "batch": 0, "remat": "", "tokens": 0.0, "price": "", "deadline": "",
            "compile": 0, "plot": "", "json": False}  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys):
    """(exit code, what is printed) of the command with these flags."""

    def call(**given):
        monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**(DEFAULTS | given)))
        return command.main([]), capsys.readouterr().out

    return call
