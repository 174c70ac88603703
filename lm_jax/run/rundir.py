"""The folder of a run: its contents, and whether it belongs to this run. Checked before anything is
written.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_jax.config import Config, DataConfig
from lm_jax.config.field import facts_of
from lm_jax.config.values import differences, expand_home, from_json
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.views import by_objective
from lm_jax.devices import versions
from lm_jax.errors import CheckpointError, DataError, MachineError, UserError

OF_STORE = ("input", "text_field", "tokenizer", "vocab_size", "heldout_fraction")


def check(workdir: str | os.PathLike, config: Config) -> None:
    """Raises UserError when `workdir` cannot be written or holds a run of another config."""
    if "://" in str(workdir):
        raise UserError(
            f"--workdir={workdir}: must be a folder; mount the bucket (gcsfuse). "
            "config.data.store may be a URL."
        )
    try:
        str(absolute := Path(workdir).absolute()).encode()
    except UnicodeEncodeError:
        shown = str(absolute).encode(errors="replace").decode()
        raise MachineError(
            f"--workdir={shown}: is not in UTF-8, as checkpoints need; name another folder."
        ) from None
    workdir = Path(workdir)
    parent = workdir
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise MachineError(f"--workdir={workdir}: {parent} is a file; name a folder.")
    if not os.access(parent, os.W_OK):
        raise MachineError(f"--workdir={workdir}: {parent} cannot be written; name another folder.")
    path = workdir / "config.json"
    if not path.exists():
        strange = (
            # Hidden: a lock, or a token store whose preparation was killed.
            [p.name for p in workdir.iterdir() if p.name != "data" and p.name[0] != "."]
            if workdir.is_dir()
            else []
        )
        if strange:
            raise UserError(
                f"--workdir={workdir}: holds {strange[0]!r} but no run; name a new or empty folder."
            )
        return
    advice = "Name another --workdir."
    same_run(lambda: from_json(path.read_bytes()), config, UserError, path, advice)


def same_run(
    read: Callable[[], Any], config: Config, kind: type[UserError], where: Any, advice: str
) -> Config:
    """The saved config that `read` returns, of the same run as `config`: some fields may change
    when a run is resumed.

    Raises `kind`, with `advice`, where it cannot be read or is of another run; names the first
    fields that differ.
    """
    try:
        saved = Config.parse(read())
    except (ValueError, KeyError, UserError) as error:
        raise kind(
            f"{where}: cannot be read ({error}); it is damaged or of another version. {advice}"
        ) from None
    facts = facts_of(Config)
    rows = [row for row in differences(config, saved) if not facts[row[0]].may_change(config)]
    if rows:
        shown = (f"config.{name} is {old!r} there, {new!r} here" for name, new, old in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        raise kind(f"{where}: is of another run: {'; '.join(shown)}{more}. {advice}")
    return saved


def create(workdir: str | os.PathLike, config: Config) -> None:
    """Makes the folder and writes config.json, which on a full disk stays what it was."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        path, text = Path(workdir) / "config.json", json.dumps(config.to_dict(), indent=2) + "\n"
        if not path.exists() or path.read_text() != text:
            replace_text(path, text)
    except OSError as error:
        raise MachineError(f"--workdir={workdir}: {error.strerror}; name another folder.") from None


def open_store(workdir: str | os.PathLike, config: Config, prepare: bool) -> TokenStore | None:
    """The token store of a run, prepared from config.data.input when there is none yet (None in a
    dry run).
    """
    data = config.data
    path = data.store or str(Path(workdir) / "data")
    existed = TokenStore.exists(path)
    if not existed:
        refuse_other(path, data)
        if not data.input:
            raise DataError(
                f"config.data.store={data.store!r}: no token store at {path}; make one with "
                "python -m lm_jax.prepare, or set config.data.input to a text file or folder."
            )
        if data.heldout_fraction == 0:
            raise UserError(
                "config.data.heldout_fraction=0.0: a run is evaluated on held-out text; set it"
                " above 0, or make a store that has some (python -m lm_jax.prepare)."
            )
        from lm_jax.data.build import check_vocabulary
        from lm_jax.data.build import prepare as run_prepare
        from lm_jax.data.text import sources

        check_vocabulary(data, config.model.vocab_size)
        if not prepare:
            sources.probe(data.input, data.text_field)
            return None
        run_prepare(data, path, config.seed)
    store = TokenStore.open(path)
    if data.store:
        report_contradictions(store, data)
    else:
        check_input(store, data)
    if existed:
        report_edits(store, data)
    size = store.tokenizer.vocab_size
    if size > config.model.vocab_size:
        raise DataError(
            f"config.model.vocab_size={config.model.vocab_size}: smaller than the {size} tokens of "
            f"the store {path}; set it to {-(-size // 128) * 128} (a multiple of 128)."
        )
    check_lengths(store, config)
    return store


def refuse_other(path: str, data: DataConfig) -> None:
    """Raises DataError where a store would be prepared at a place that holds something else."""
    place = Path(expand_home(path))
    if "://" in path or not place.exists():
        return
    if not place.is_dir():
        raise DataError(f"config.data.store={path}: is a file; name a folder.")
    if TokenStore.exists(place / "data"):
        raise DataError(
            f"config.data.store={path}: is a run, whose store is {path}/data; set config.data.store"
            " to that."
        )
    if found := sorted(os.listdir(place)):
        advice = "name a store, or a new or empty folder" if data.store else (
            "put back what is lost, or name another --workdir"
        )  # fmt: skip
        raise DataError(f"{path}: holds {found[0]!r} but no token store (store.json); {advice}.")


def check_lengths(store: Any, config: Config) -> None:
    """Raises DataError when a split of the store holds less than one example."""
    data = config.data
    needed = data.sequence_length + 1 if by_objective.cuts_text(config.loss.objective) else 1
    if (count := store.num_tokens("train")) < needed:
        raise DataError(
            f"{store.path}: {count} training tokens do not fill one window of "
            f"config.data.sequence_length={data.sequence_length}; give more text or shorten it."
        )
    if (count := store.num_tokens("heldout")) < needed:
        made = store.metadata.get("data", {}).get("heldout_fraction", data.heldout_fraction)
        place = "store (python -m lm_jax.prepare)" if data.store else "--workdir"
        raise DataError(
            f"{store.path}: {count} held-out tokens do not fill one window of "
            f"config.data.sequence_length={data.sequence_length}; raise "
            f"config.data.heldout_fraction={made:g} in a new {place}, or give more text."
        )


def discard_unfinished(workdir: str | os.PathLike, config: Config) -> None:
    """Deletes what this process has prepared of the run's token store, unless it is finished."""
    from lm_jax.data.tokens.writer import discard

    discard(config.data.store or str(Path(workdir) / "data"))


def check_input(store: TokenStore, data: DataConfig) -> None:
    """Raises DataError when a run's own store was made of another text or with other settings than
    those of `data`.
    """
    made = store.metadata.get("data", {})
    for name in OF_STORE:
        if name in made and made[name] != getattr(data, name):
            raise DataError(
                f"config.data.{name}={getattr(data, name)!r}: {store.path} was made with "
                f"{made[name]!r}; name another --workdir, delete {store.path}, or set "
                "config.data.store to it to use it as it is."
            )


def report_contradictions(store: TokenStore, data: DataConfig) -> None:
    """Prints a line where fields of `data` were set to something that its explicit store is not."""
    made, default = store.metadata.get("data", {}), DataConfig()
    for name in OF_STORE:
        value = getattr(data, name)
        if name in made and value not in (made[name], getattr(default, name)):
            print(
                f"WARNING: config.data.{name}={value!r}: not used; config.data.store="
                f"{data.store} was made with {made[name]!r}.", flush=True,
            )  # fmt: skip


def report_edits(store: TokenStore, data: DataConfig) -> None:
    """Prints a line where the text that a store was made from has changed since."""
    from lm_jax.data.text import inputs

    known, spec = store.metadata.get("inputs"), store.metadata.get("data", {}).get("input")
    edits = inputs.changes(spec, known) if known and spec and spec == data.input else ""
    if edits:
        print(
            f"WARNING: config.data.input={spec}: {edits}; {store.path} was made before and is used"
            " as it is. For the text of today name another --workdir or config.data.store.",
            flush=True,
        )


def installed() -> dict[str, str]:
    """Python and the packages that decide what a run computes."""
    names = ("lm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
             "sentencepiece")  # fmt: skip
    packages = {name: versions.installed(name) for name in names}
    return {"python": platform.python_version(), **{k: v for k, v in packages.items() if v}}


def metadata(
    config: Config, workdir: str | os.PathLike, store: TokenStore, mesh: Any
) -> dict[str, Any]:
    """Metadata of a run's checkpoints: config, data, tokenizer, versions, mesh."""
    saved = json.loads((Path(workdir) / "config.json").read_text())
    return {
        "config": saved,
        "store": str(Path(config.data.store or Path(workdir) / "data").absolute())
        if "://" not in config.data.store else config.data.store,
        "tokenizer_hash": store.tokenizer_hash,
        "data_fingerprint": store.fingerprint,
        "versions": installed(),
        "mesh": dict(mesh.shape),
    }  # fmt: skip


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """A tokenizer as files {name: content}, to lie in each checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def check_checkpoint(
    saved: dict[str, Any], config: Config, store: TokenStore, mesh: Mapping[str, int]
) -> None:
    """Raises CheckpointError where a checkpoint's metadata is that of another run than `config`
    (copied here, or its config.json replaced), or was trained on other data or tokens. Prints a
    line where the rest of the run will draw other random numbers than a run without a pause.

    mesh: devices along each axis, by name.
    """
    advice = "Put back the checkpoints of this run, or start a new --workdir."
    where = "the newest checkpoint"
    before = same_run(lambda: saved["config"], config, CheckpointError, where, advice)
    if saved.get("tokenizer_hash") != store.tokenizer_hash:
        raise CheckpointError(
            f"the checkpoint's tokenizer ({str(saved.get('tokenizer_hash'))[:12]}) is not the token"
            f" store's ({store.tokenizer_hash[:12]}); restore config.data.store="
            f"{saved.get('store')}, or start a new --workdir."
        )
    if saved.get("data_fingerprint") != store.fingerprint:
        raise CheckpointError(
            "the token store has changed since the checkpoint was saved, so the position in the "
            f"data means something else now; restore config.data.store={saved.get('store')}, or "
            "start a new --workdir."
        )
    if config.steps < saved.get("step", 0):
        raise CheckpointError(
            f"config.steps={config.steps}: the newest checkpoint is of step {saved['step']} "
            "already; set at least that, or name another --workdir."
        )
    old, new = dropout_parts(before, saved.get("mesh", mesh)), dropout_parts(config, mesh)
    changed = [name for name in new if name in old and old[name] != new[name]]
    if config.model.has_dropout and changed:
        name = changed[0]
        print(
            f"WARNING: {name}={new[name]}: was {old[name]} when the checkpoint was saved. Dropout "
            "draws by microbatch and by part of a pipeline, so the losses from here on are not "
            "those of a run without this change.", flush=True,
        )  # fmt: skip


def dropout_parts(config: Config, mesh: Mapping[str, int]) -> dict[str, int]:
    """Settings, by name, that decide into which parts a batch is cut, each with a dropout mask of
    its own: microbatches, and parts that follow each other through a pipeline's stages
    (models/pipeline.py).
    """
    stages = mesh.get("stage", 1)
    parts = {"config.microbatches": config.microbatches, "config.mesh.stage": stages}
    if stages > 1:
        model = config.model
        parts["config.model.pipeline_parts"] = model.pipeline_parts
        parts["config.model.pipeline_rounds"] = model.pipeline_rounds
        parts |= {f"config.mesh.{axis}": size for axis, size in mesh.items()}
    return parts


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or, where the disk is full or the process killed, leaves it as it was.
    Raises OSError that names it: a full disk alone names nothing.

    What UTF-8 cannot write, such as a part of a name of the disk that is no text, becomes "?".
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, "utf-8", errors="replace")
        new.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        new.unlink(missing_ok=True)
