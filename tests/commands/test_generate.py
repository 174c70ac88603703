"""The command prints the prompt and what follows it."""

import pytest
from commands import run_module as command
from saved_models import save_run

import lm_jax


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"), steps=(20,))


def test_the_command_prints_what_the_model_generates(run):
    flags = ["--prompt=é(", "--max_new_tokens=9", "--seed=3", "--temperature=0.5", "--top_k=9"]
    code, out, err = command("lm_jax.generate", f"--checkpoint={run}", *flags)
    assert code == 0, err
    lm = lm_jax.load(run)
    settings = {"max_new_tokens": 9, "temperature": 0.5, "top_k": 9}
    assert out == "é(" + lm.generate("é(", seed=3, **settings) + "\n"
    assert "step 20" in err


def test_ids_and_special_tokens_are_prompts_too(run):
    flags = ["--max_new_tokens=9", "--temperature=0"]
    code, out, err = command(
        "lm_jax.generate", f"--checkpoint={run}", "--prompt_ids=256,97", *flags
    )
    assert code == 0, err
    answer = lm_jax.load(run).generate([256, 97], max_new_tokens=9, temperature=0)
    assert out == f"[256, 97] {answer}\n"
    flags += ["--prompt=<s>a", "--special_tokens", "--nobos"]
    code, out, err = command("lm_jax.generate", f"--checkpoint={run}", *flags)
    assert (code, out) == (0, f"<s>a{answer}\n")


def test_a_setting_that_cannot_be_is_one_line_and_an_exit_code(run):
    code, out, err = command("lm_jax.generate", f"--checkpoint={run}", "--top_p=2")
    assert (code, out) == (2, "")
    assert err.startswith("error: top_p=2")
    assert len(err.strip().splitlines()) == 1
