"""Does a run leave what it was asked for, besides its checkpoints?"""

import pytest
from commands import ONE, Commands

CONFIG = """
from lm_jax import config as lm_config

def get_config():
    config = lm_config.new()
    config.steps, config.batch_size = 12, 2
    config.model.vocab_size, config.model.num_layers, config.model.dim = 384, 1, 16
    config.model.num_heads, config.model.max_length = 2, 32
    config.data.tokenizer, config.data.sequence_length = "bytes", 16
    config.data.heldout_fraction = 0.1
    config.eval.tokens, config.eval.samples, config.eval.every = 64, 0, 0
    config.optimizer.warmup_steps = 0
    return config
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as run:
        yield run


def train(commands, folder, config, *more):
    """Of a config on a text, in a folder."""
    (folder / "c.py").write_text(config)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 600)
    files = f"--config={folder}/c.py", f"--config.data.input={folder}/text.txt"
    return commands("lm_jax.train", *files, f"--workdir={folder}/run", *more, **ONE)


def test_a_run_that_ends_before_its_profile_is_full_leaves_the_trace(commands, tmp_path):
    code, out, err = train(commands, tmp_path, CONFIG, "--profile")
    assert code == 0, err
    assert f"profile: {tmp_path}/run/profile" in out
    traces = list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 0


TOO_LARGE = """  # 64 TiB of logits
    config.model.architecture, config.model.vocab_size, config.model.dim = "rnn", 2**24, 2
    config.model.num_heads, config.batch_size = 1, 1024
    config.model.max_length = config.data.sequence_length = config.loss.chunk_size = 1024
    return config
"""


@pytest.mark.jax10
def test_a_run_that_needs_too_much_memory_ends_with_one_line_and_keeps_what_was_said(
    commands, tmp_path
):
    config = CONFIG.replace("\n    return config\n", TOO_LARGE)
    code, _, err = train(commands, tmp_path, config, "--nopreflight")
    assert code == 4, err
    file = tmp_path / "run" / "out-of-memory-0.txt"
    fields = "config.loss.chunk_size=0 (now 1024), or config.microbatches=2 (now 1)"
    assert err.startswith("error: out of memory on cpu: no room for ")
    assert err.endswith(f"logits, 64.00 TiB: set {fields}; all of it: {file}\n")
    assert len(err.splitlines()) == 1
    assert "RESOURCE_EXHAUSTED: Out of memory allocating" in file.read_text()
