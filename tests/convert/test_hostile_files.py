"""A malformed or malicious file is refused in one line that names it, and nothing is loaded."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm_jax import convert
from lm_jax.convert import registry, safetensors_file
from lm_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "parity" / "golden" / "llama"
NORM = "model.norm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def text(change):
    """Changes the header's JSON as text; its length stays true."""

    def apply(path: Path) -> None:
        data = (path / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        head = change(data[8 : 8 + size].decode()).encode()
        (path / "model.safetensors").write_bytes(
            struct.pack("<Q", len(head)) + head + data[8 + size :]
        )

    return apply


def entry(name: str, **fields):
    """Changes one tensor's entry in the header."""

    def change(head: str) -> str:
        entries = json.loads(head)
        entries[name] |= fields
        return json.dumps(entries)

    return text(change)


def tensors(change):
    """Changes the tensors, in a file that is well formed."""

    def apply(path: Path) -> None:
        found = load_file(path / "model.safetensors")
        save_file(change(found), path / "model.safetensors")

    return apply


def raw(change):
    """Changes the bytes of the file."""

    def apply(path: Path) -> None:
        file = path / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return apply


def config(**fields):
    """Changes config.json."""

    def apply(path: Path) -> None:
        values = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(values | fields))

    return apply


def config_text(content: bytes):
    return lambda path: (path / "config.json").write_bytes(content)


def index(change):
    """Two files and an index, which `change` then changes."""

    def apply(path: Path) -> None:
        found = load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        places = {}
        for i in range(2):
            names = sorted(found)[i::2]
            save_file({name: found[name] for name in names}, path / f"part-{i}.safetensors")
            places |= dict.fromkeys(names, f"part-{i}.safetensors")
        places = change(path, places)
        file = path / "model.safetensors.index.json"
        file.write_text(json.dumps({"weight_map": places}))

    return apply


def outside(path: Path, places: dict[str, str]) -> dict[str, str]:
    (path / "part-0.safetensors").rename(path.parent / "part-0.safetensors")
    (path / "part-0.safetensors").symlink_to(path.parent / "part-0.safetensors")
    return places


def pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def blanks(path: Path) -> None:
    with open(path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 99 * 10**6) + b"{}")
        file.truncate(10**8)  # sparse


def scaling(**fields):
    return config(rope_parameters={"rope_theta": 1e4, **fields})


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def link_out(file: Path) -> None:
    file.rename(file.parent.parent / file.name)
    file.symlink_to(file.parent.parent / file.name)


def link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def text_of_config(path: Path, old: str, new: str) -> None:
    content = (path / "config.json").read_text()
    assert old in content
    (path / "config.json").write_text(content.replace(old, new))


NAN = tensors(lambda found: found | {NORM: np.full(16, np.nan, np.float32)})
WHOLE = tensors(lambda found: found | {QUERY: found[QUERY].astype(np.int32)})
CASES = {
    "empty file": (raw(lambda data: b""), "not a safetensors file"),
    "cut off": (raw(lambda data: data[:-4]), "the file has"),
    "trailing bytes": (raw(lambda data: data + b"1234"), "the file has"),
    "endless header": (raw(lambda data: b"\xff" * 8 + data[8:]), "not a safetensors file"),
    "99 MB of blanks": (blanks, "not a safetensors file"),
    "header is no JSON": (text(lambda head: head[:-1] + "!"), "not valid JSON"),
    "header of bad UTF-8": (raw(lambda data: data[:8] + b"\xff" + data[9:]), "not valid JSON"),
    "header is a list": (text(lambda head: "[" + head + "]"), "JSON object"),
    "deep header": (text(lambda head: '{"a":' + "[" * 10**5 + "]" * 10**5 + "}"), "too deep"),
    "a name twice": (text(lambda head: head.replace(QUERY, NORM)), f"'{NORM}' is there twice"),
    "a path as a name": (text(lambda head: head.replace(NORM, "../x")), r"'\.\./x'"),
    "unknown type": (entry(NORM, dtype="F31"), f"{NORM}: dtype 'F31'"),
    "negative size": (entry(NORM, shape=[-16]), f"{NORM}: shape"),
    "shape that overflows": (entry(NORM, shape=[2**40, 2**40]), f"{NORM}: 64 bytes"),
    "overlap": (entry(NORM, data_offsets=[0, 64]), "begins at byte"),
    "beyond the file": (entry(NORM, data_offsets=[10**9, 10**9 + 64]), "begins at byte"),
    "bytes are not numbers": (entry(NORM, data_offsets=[True, "64"]), f"{NORM}: offsets"),
    "300,000 tensors": (
        text(lambda head: json.dumps({f"t{i}": {} for i in range(300_000)})), "300000 tensors"),
    "tensor missing": (
        tensors(lambda found: {k: v for k, v in found.items() if k != QUERY}), f"{QUERY} is miss"),
    "tensor too many": (
        tensors(lambda found: found | {"model.extra": found[NORM]}), r"model\.extra is not part"),
    "wrong shape": (
        tensors(lambda found: found | {QUERY: found[QUERY][:8].copy()}), f"{QUERY} has shape"),
    "weights are whole numbers": (WHOLE, f"{QUERY} is I32"),
    "a weight is not a number": (NAN, f"{NORM} holds NaN"),
    "a pickle": (pickle_only, r"pytorch_model\.bin: is a pickle"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "has no model.safetensors"),
    "index leads up": (
        index(lambda path, places: places | {NORM: "../part-0.safetensors"}), "only files beside"),
    "index leads to the root": (
        index(lambda path, places: places | {NORM: "/etc/x.safetensors"}), "only files beside it"),
    "index follows a link out": (index(outside), "leads out of the directory"),
    "index names no file": (
        index(lambda path, places: places | {NORM: "part-9.safetensors"}), "which is not there"),
    "index names the wrong file": (
        index(lambda path, places: places | {
            NORM: next(v for v in ("part-0.safetensors", "part-1.safetensors") if v != places[NORM])
        }), f"{NORM} is not in"),
    "index names a tensor that is not": (
        index(lambda path, places: places | {"x": "part-0.safetensors"}), "x is not in part-0"),
    "index is empty": (index(lambda path, places: {}), "weight_map"),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json: no such file"),
    "config is no JSON": (config_text(b"PK\x03\x04"), "config.json: not valid JSON"),
    "config with a key twice": (config_text(b'{"a": 1, "a": 2}'), "'a' is there twice"),
    "config with NaN": (config_text(b'{"rms_norm_eps": NaN}'), "NaN is not a number"),
    "config of 2 MB": (config_text(b" " * 2**21), "more than"),
    "family not known": (config(model_type="mamba"), "model_type='mamba': not supported"),
    "family is a list": (config(model_type=[1]), "model_type"),
    "config is a link out": (lambda path: link_out(path / "config.json"), "config.json: is a link"),
    "weights are a link out": (
        lambda path: link_out(path / "model.safetensors"), "a link that leads out of the direct"),
    "a link to itself": (lambda path: link_to_itself(path / "config.json"), "leads nowhere"),
    "config is a pointer": (config_text(POINTER), "is a Git LFS pointer.*git lfs pull"),
    "weights are a pointer": (raw(lambda data: POINTER), "safetensors: is a Git LFS pointer, not"),
    "no rotary base": (config(rope_parameters=None, rope_theta=0), "rope_theta=0: must be above"),
    "no nested base": (scaling(rope_type="default", rope_theta=0), "rope_theta=0: must be above"),
    "negative epsilon": (config(rms_norm_eps=-1e-6), "rms_norm_eps=-1e-06: must be at least 0"),
    "no epsilon": (config(rms_norm_eps=0), "norm_eps=0.0: must be above 0"),
    "endless epsilon": (
        lambda path: text_of_config(path, '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e400'),
        "rms_norm_eps=inf: must be finite"),
    "quantized": (config(quantization_config={"bits": 4}), "quantization_config"),
    "one bias alone": (config(mlp_bias=True), "mlp_bias=True: not supported with attention_bias"),
    "a window of the cache": (config(sliding_window=4), "sliding_window=4: not supported in a ll"),
    "layers of two kinds": (
        config(layer_types=["full_attention", "chunked_attention"]), "layers are all of one kind"),
    "weights of another file": (config(transformers_weights="x"), "would come from the file"),
    "both ways": (config(is_causal=False), "is_causal=False: not supported in a llama: its tokens"),
    "activation not known": (config(hidden_act="xielu"), "hidden_act='xielu': not supported"),
    "size missing": (config(hidden_size=None), "hidden_size: is missing"),
    "size of another type": (config(hidden_size="16"), "hidden_size='16': expected int"),
    "size without end": (config(hidden_size=10**30), "hidden_size=1000"),
    "negative layers": (config(num_hidden_layers=-1), "num_hidden_layers=-1"),
    "a billion layers": (config(num_hidden_layers=10**9), "1000000000 layers"),
    "heads that do not divide": (config(num_key_value_heads=3), "num_kv_heads=3"),
    "no heads": (config(num_attention_heads=0), "num_heads=0"),
    "scaling not known": (scaling(rope_type="longrope", factor=4.0), "rope_type='longrope'"),
    "scaling without factor": (scaling(rope_type="linear"), "rope_parameters.factor: is missing"),
    "scaling by nothing": (scaling(rope_type="linear", factor=0), "factor=0: must be above 0"),
    "part of a head turns": (
        scaling(rope_type="default", partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_is_wrong(case, tmp_path, monkeypatch):
    break_it, message = CASES[case]
    path = tmp_path / "model"
    shutil.copytree(GOLDEN, path)
    break_it(path)
    if "NaN" not in message or "config" in case:
        # Whatever can be known without the data is said before any is read.
        monkeypatch.setattr(safetensors_file.Tensor, "read", lambda self: pytest.fail("read"))
    with pytest.raises(UserError, match=message) as error:
        convert.import_hf(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))


def test_a_key_that_nothing_reads_is_passed_over_in_one_line(tmp_path, capsys):
    path = tmp_path / "model"
    shutil.copytree(GOLDEN, path)
    more = {"is_llama_config": True, "a\nb\x1b[2J": 1, "rope_interleaved": True, "_private": 1}
    nested = {"rope_type": "default", "rope_theta": 1e4, "finetuned": True}
    config(**more, **{f"x{i:04}": i for i in range(500)}, rope_parameters=nested)(path)
    convert.import_hf(path)
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "LlamaForCausalLM of transformers does not read: a\\nb\\x1b[2J, is_llama_config" in err
    assert "rope_interleaved, rope_parameters.finetuned, x0000" in err
    assert err.endswith("more\n")
    assert "_private" not in err
    assert len(err) < 400 + len(str(path))


def test_a_model_of_a_billion_experts_is_refused_at_once():
    values = json.loads((GOLDEN.parent / "mixtral" / "config.json").read_text())
    mixtral = registry.family_named("mixtral")
    with pytest.raises(UserError, match="2 layers of 2000000000 experts: at most"):
        mixtral.read_config(values | {"num_local_experts": 2 * 10**9}, "")
    with pytest.raises(UserError, match="9000 layers of 60000 experts: at most"):
        mixtral.read_config(values | {"num_local_experts": 60_000, "num_hidden_layers": 9000}, "")


def test_a_pickle_or_a_missing_directory_by_name(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(UserError, match="is a pickle"):
        convert.import_hf(tmp_path / "x.pt")
    with pytest.raises(UserError, match="is not a directory"):
        convert.import_hf(tmp_path / "nothing")


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_bytes((GOLDEN / "model.safetensors").read_bytes())
    (snapshot / "part.safetensors").symlink_to(Path("../../blobs/1"))
    names = load_file(GOLDEN / "model.safetensors")
    places = {"weight_map": dict.fromkeys(names, "part.safetensors")}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(places))
    assert set(safetensors_file.tensors(snapshot)) == set(names)
