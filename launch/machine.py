"""Prints the Cloud TPU API's name of a TPU, and how many slices its name says: v5litepod-16 1.

Called by launch/tpu_vm.sh with any of the names that people have (v5e-16, v5litepod-16,
tpu-v5-lite-podslice:4x4, v6e:4x4*2), with the standard library alone; what is none is one line,
exit code 2.
"""

import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lm_jax.devices import chips
from lm_jax.errors import UserError

OLD = re.compile(r"v[23]-\d+")  # lm_jax has no figures of them, and they are as gcloud has them


def gcloud_name(text: str) -> str:
    """`TYPE SLICES` of a TPU by any name; raises UserError."""
    if OLD.fullmatch(text):
        return f"{text} 1"
    machine = chips.named(text, "--type")
    chip, shape = machine.chip, machine.shape
    if shape is None and machine.chips_per_host:
        shape = chips.slice_of(chip, machine.chips_per_host)
    if not chip.gcloud:
        raise UserError(f"--type={text}: the Cloud TPU API has no {chip.name}; GKE has TPUs and "
                        "GPUs: launch/gke.sh.")  # fmt: skip
    if shape is None:
        raise UserError(f"--type={text}: must be a type and its size, as in --type={chip.name}-16.")
    count = math.prod(shape)
    if shape != chips.slice_of(chip, count):
        near = chips.slice_of(chip, count) or chips.slices(chip)[3]
        raise UserError(f"--type={text}: no slice of this API; the nearest is {chip.gcloud}-"
                        f"{math.prod(near) * chip.cores}, {chips.joined(near)}.")  # fmt: skip
    return f"{chip.gcloud}-{count * chip.cores} {machine.slices or 1}"


if __name__ == "__main__":
    try:
        print(gcloud_name(sys.argv[1]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
