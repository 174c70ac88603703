"""An analytic model of the train step without a compiler, in milliseconds for a plan. The compiled
program has the last word.

FLOPs are counted in the jaxpr of the real loss; HBM traffic is what each product reads and writes.
"""

import dataclasses
import functools

import jax

from lm_jax.config import Config, MeshConfig
from lm_jax.config.check import has_prefix
from lm_jax.config.model import TRANSFORMERS
from lm_jax.data.views import fit
from lm_jax.devices.chips import Topology
from lm_jax.devices.resolve import resolved
from lm_jax.errors import UserError
from lm_jax.plan import roofline, shapes
from lm_jax.plan.communication import (
    recomputes_attention,
    recomputes_products,
    seconds_per_byte,
    sent_by_axes,
    stacks,
)
from lm_jax.plan.flops import Flops, count
from lm_jax.plan.memory import Memory, memory
from lm_jax.plan.overlap import Layered, Phases, layered
from lm_jax.plan.part import LANES, Part
from lm_jax.tasks.objectives import loss


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One plan: a config with its mesh, on a topology. Of one device and one step."""

    config: Config
    topology: Topology
    memory: Memory
    flops: float  # of the matrix unit
    traffic: float  # bytes from and to the memory
    sent: dict[str, float]  # bytes to other devices, by axes of the mesh
    times: roofline.Times
    layered: Layered

    @property
    def fits(self) -> bool:
        """Whether a device has that much memory."""
        return self.memory.total <= self.topology.chip.device_hbm


def check_estimable(config: Config) -> None:
    """Raises UserError where only the compiler has figures: no Transformer, or a pipeline."""
    if (kind := config.model.architecture) not in TRANSFORMERS:
        raise UserError(
            f"config.model.architecture={kind!r}: there is no estimate of it, but of decoder, "
            "encoder and encoder_decoder; name a TPU and a --mesh, without --plot, and it is "
            "compiled."
        )
    if config.mesh.stage > 1:
        raise UserError(
            f"config.mesh.stage={config.mesh.stage}: there is no estimate of a pipeline; name a "
            "TPU and a --mesh, without --plot, and it is compiled."
        )


def part_of(config: Config, topology: Topology) -> Part:
    """A device's share of a step of `config`, whose mesh has no -1; raises as `check_estimable`,
    and UserError where a run on such devices would.
    """
    check_estimable(config)
    platform, shared = "tpu" if topology.chip.is_tpu else "gpu", config.mesh.context > 1
    model = resolved(config.model, platform, has_prefix(config), shared)
    config = dataclasses.replace(config, model=model)
    fit.check_rows(config, config.mesh.context)
    if model.attention == "cudnn":
        config = without_cudnn(config)
    return Part(config, LANES if topology.chip.is_tpu else 1)


def without_cudnn(config: Config) -> Config:
    """`config` with an attention that can be traced without a GPU, which cuDNN's cannot: the kernel
    of a TPU saves and computes as much. Rows that it does not take are traced on plain XLA, which
    is estimated to hold more.
    """
    with_kernel, with_xla = (
        dataclasses.replace(config, model=dataclasses.replace(config.model, attention=name))
        for name in ("splash", "xla")
    )
    odd = has_prefix(config) or fit.misfit(with_kernel, config.mesh.context)
    return with_xla if odd else with_kernel


def estimate(config: Config, topology: Topology) -> Estimate:
    """Estimates memory and time of `config`, whose mesh has no -1. Raises UserError for a model
    without blocks.
    """
    part = part_of(config, topology)
    work, moved = flops(part.config).times(1 / topology.devices), traffic(part)
    sent = {axes: size for axes, size in sent_by_axes(part).items() if size}
    cost = seconds_per_byte(topology, tuple(part.sizes.items()))
    seconds: dict[str, float] = {}
    for axes, size in sent.items():
        for name, each in zip(("ici", "dcn"), cost[axes], strict=True):
            seconds |= {f"{name}:{axes}": size * each} if each else {}
    times = roofline.times(topology, work, moved, seconds)
    by_layers = layered(part, topology, phases(part, topology))
    return Estimate(config, topology, memory(part), work.matrix, moved, sent, times, by_layers)


def flops(config: Config) -> Flops:
    """FLOPs of the loss of a whole batch and of its gradient, with recomputation."""
    mesh = MeshConfig(data=1, context=config.mesh.context)
    one = dataclasses.replace(shapes.essence(config), mesh=mesh)
    return flops_of(one).times(config.batch_size)


@functools.lru_cache(maxsize=64)
def flops_of(config: Config) -> Flops:
    """FLOPs of the one window of `config`, on the devices that share it."""
    part = lambda net, batch: loss(net, batch, None, config.loss)[0]
    with shapes.abstract(shapes.sizes_of(config.mesh)):
        return count(jax.value_and_grad(part), *shapes.one_window(config))


def phases(part: Part, topology: Topology) -> Phases:
    """Seconds of the phases of one device: in a microbatch, and once a step."""
    config, chip = part.config, topology.chip
    model = config.model
    once = dataclasses.replace(config, model=dataclasses.replace(model, remat="none"))
    # The gradient of each operand of a product costs as much as the product itself.
    logits = Flops(products=6.0 * model.dim * model.vocab_size * config.tokens_per_step)
    total, least = flops(config), flops(once)
    share = 1 / 2 if model.quantization.endswith("_full") else 1  # forward, of what is in 8 bits
    forward_flops = Flops(
        products=(least.matrix - logits.matrix) / 3, int8=least.int8 * share, fp8=least.fp8 * share
    )
    share_of_all = 1 / (topology.devices * config.microbatches)
    backward_flops = total + (forward_flops + logits).times(-1)
    matrix = [
        roofline.matrix(topology, work.times(share_of_all))
        for work in (forward_flops, backward_flops, logits)
    ]
    passes = passes_of(part)
    layers = layers_traffic(part) / passes
    moved = [layers, (passes - 1) * layers, head_traffic(part)]
    forward, backward, head = (
        max(work, size / chip.device_hbm_rate) for work, size in zip(matrix, moved, strict=True)
    )
    attention = attention_flops(part) / (chip.device_flops * chip.matmul)
    return Phases(
        forward, backward, attention, head, optimizer_traffic(part) / chip.device_hbm_rate
    )


def attention_flops(part: Part) -> float:
    """Attention FLOPs of a device in a microbatch: two products of queries and keys forward, five
    backward (Dao 2023, arXiv:2307.08691, section 3.1), and those that are recomputed.
    """
    model, length = part.config.model, part.config.data.sequence_length
    seen = length / 2 if model.architecture == "decoder" else length
    heads = model.num_heads * model.head_size / part.sizes["tensor"]
    layers = sum(layers * (branches - 1) for branches, layers in stacks(model))
    return 2 * part.tokens * seen * heads * layers * (7 + 2 * recomputes_attention(model))


def passes_of(part: Part) -> int:
    """Number of passes through the layers: forward, recomputation if any, and two for gradients."""
    return 3 + recomputes_products(part.config.model)


def traffic(part: Part) -> float:
    """Bytes that a device reads from its memory and writes to it in a step, by what each product
    reads and writes in all passes.
    """
    each = layers_traffic(part) + head_traffic(part)
    return part.config.microbatches * each + optimizer_traffic(part)


def optimizer_traffic(part: Part) -> float:
    """HBM bytes moved by the optimizer in a step: Adam reads and writes all of its state, and
    gradients are written and read.
    """
    state, sizes = shapes.state(part.config), part.sizes
    return 4 * state.bytes("parameters", sizes) + 2 * state.bytes("optimizer", sizes)


def layers_traffic(part: Part) -> float:
    """HBM bytes moved by the layers for one microbatch."""
    sizes, passes = part.sizes, passes_of(part)
    weights = shapes.state(part.config).bytes("blocks", sizes | {"fsdp": 1}, part.number)
    layers = sum(layer_traffic(part, *each) for each in stacks(part.config.model))
    return weights * (passes + 2 * (sizes["fsdp"] > 1)) + passes * layers


def head_traffic(part: Part) -> float:
    """HBM bytes moved by embeddings, head and loss for one microbatch."""
    config, sizes = part.config, part.sizes
    model = config.model
    logits = part.tokens * (model.vocab_size // sizes["tensor"]) * part.number
    # Each chunk reads the table twice, and reads and writes its gradient in float32.
    return (
        part.length // part.chunk * 2 * (part.table_bytes(4) + part.table_bytes(part.number))
        + 4 * logits
    )


def layer_traffic(part: Part, branches: int, layers: int) -> int:
    """HBM bytes of the states in one forward pass through `layers` blocks, without weights."""
    model = part.config.model
    queries, keys = part.heads(model.num_heads), part.keys
    states, hidden = part.states, part.hidden
    attention = 2 * states + 2 * (queries + 2 * keys) + 2 * queries + 3 * states
    if not part.kernel:  # scores are written and read, in float32
        scores = part.tokens * part.config.data.sequence_length * model.num_heads * 4
        attention += 3 * scores // part.sizes["tensor"]
    expanded = hidden * (1 + model.gated)
    forward = 2 * states + 2 * expanded + 2 * hidden + 3 * states
    if model.num_experts:  # rows are sent and returned, and sorted for the grouped product
        rows = states * part.sizes["expert"] * model.experts_per_token
        forward += 4 * rows + 4 * expanded
    return layers * ((branches - 1) * attention + forward)
