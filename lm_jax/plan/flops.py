"""Floating point operations of a function, counted from its jaxpr with loops and recomputation.

The compiler's own count has the body of a loop once, and no Pallas kernel. A product of
matrices [M, K] [K, N] is 2 M N K; everything else is one per element of its result. A function
that is traced with shardings in its types (explicit mesh axes) can also be counted for one device.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from lm_jax.plan.trip_count import trip_count

# One operation per element of the result.
ELEMENTWISE = {
    "add", "add_any", "sub", "mul", "div", "rem", "neg", "abs", "sign", "floor", "ceil",
    "round", "exp", "exp2", "expm1", "log", "log1p", "log2", "tanh", "logistic", "sin", "cos",
    "tan", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow", "square", "erf", "erf_inv", "erfc",
    "max", "min", "clamp", "select_n", "lt", "le", "gt", "ge", "eq", "ne",
}  # fmt: skip
# One operation per element of the operand.
REDUCTIONS = {
    "reduce", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum", "cumlogsumexp",
    "cummax", "argmax", "argmin",
}  # fmt: skip
Eqn = Any  # jax.extend.core.JaxprEqn, whose variables have no shapes for a type checker
SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating point operations by kind, and what could not be counted, with its number."""

    products: float = 0.0  # of matrices, convolutions
    attention: float = 0.0  # products inside of attention kernels, of the blocks that they visit
    other: float = 0.0
    int8: float = 0.0  # of the products, those of numbers of eight bits
    fp8: float = 0.0
    uncounted: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def matrix(self) -> float:
        """FLOPs of the matrix unit."""
        return self.products + self.attention

    def __add__(self, more: "Flops") -> "Flops":
        names = {**self.uncounted, **more.uncounted}
        uncounted = {n: self.uncounted.get(n, 0) + more.uncounted.get(n, 0) for n in names}
        sums = {name: getattr(self, name) + getattr(more, name) for name in FLOPS}
        return Flops(**sums, uncounted=uncounted)

    def times(self, count: float) -> "Flops":
        """FLOPs of `count` repetitions."""
        each = {name: getattr(self, name) * count for name in FLOPS}
        return Flops(**each, uncounted=self.uncounted)


FLOPS = [field.name for field in dataclasses.fields(Flops) if field.name != "uncounted"]


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts jaxprs. per_device: FLOPs of one device, not of all of them together."""

    platform: str = "tpu"  # which branch of jax.lax.platform_dependent runs
    per_device: bool = False
    ragged: float = 1.0  # share of the rows of a ragged_dot that are in a group

    def closed(self, jaxpr: core.ClosedJaxpr) -> Flops:
        """Counts a whole traced function, without equations that no result needs."""
        needed, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), True)
        return self.run(needed, [None] * len(needed.invars), jaxpr.consts)

    def run(self, jaxpr: core.Jaxpr, args: Sequence[Any], consts: Sequence[Any] = ()) -> Flops:
        """Counts a jaxpr; `args` are the values of its inputs, None for unknown ones."""
        pairs = zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True)
        known = {var: value for var, value in pairs if value is not None}
        total = Flops()
        for eqn in jaxpr.eqns:
            values = [v.val if isinstance(v, core.Literal) else known.get(v) for v in eqn.invars]
            total += self.equation(eqn, values)
            if eqn.primitive.name == "platform_index":
                known[eqn.outvars[0]] = self.branch(eqn.params["platforms"])
            elif eqn.primitive.name in ("convert_element_type", "clamp", "copy", "pvary"):
                known[eqn.outvars[0]] = values[len(values) // 2]  # the operand, of clamp too
        return total

    def equation(self, eqn: Eqn, values: Sequence[Any]) -> Flops:
        """Counts one equation; `values` are those of its inputs."""
        name, params = eqn.primitive.name, eqn.params
        if name in RULES:
            return RULES[name](self, eqn, values)
        if name in ELEMENTWISE:
            return Flops(other=self.size(eqn.outvars[0]))
        if name in REDUCTIONS or name.startswith("scatter"):
            return Flops(other=self.size(eqn.invars[-1 if name.startswith("scatter") else 0]))
        found = [params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params]
        inside = getattr(found[0], "jaxpr", found[0]) if found else None
        if inside is not None and len(inside.invars) == len(values):  # a call of some kind
            return self.inner(found[0], values)
        lists = (v if isinstance(v, (tuple, list)) else (v,) for v in params.values())
        kinds = (core.Jaxpr, core.ClosedJaxpr)
        runs_more = any(isinstance(each, kinds) for parts in lists for each in parts)
        return unknown(name) if runs_more else Flops()

    def inner(self, jaxpr: Any, values: Sequence[Any]) -> Flops:
        """Counts a jaxpr in the parameters of an equation."""
        if isinstance(jaxpr, core.ClosedJaxpr):
            return self.run(jaxpr.jaxpr, values, jaxpr.consts)
        return self.run(jaxpr, values)

    def branch(self, platforms: Sequence[tuple[str, ...] | None]) -> int:
        """The branch that runs on `platform`: the one that names it, else the one for all."""
        named = [i for i, names in enumerate(platforms) if names and self.platform in names]
        return (named or [i for i, names in enumerate(platforms) if names is None])[0]

    def axes(self, var: Any) -> list[set[str]]:
        """The mesh axes that shard each dimension of a value."""
        spec = getattr(getattr(var.aval, "sharding", None), "spec", None)
        if not self.per_device or spec is None:
            return [set() for _ in var.aval.shape]
        parts = [{p} if isinstance(p, str) else set(p or ()) for p in spec]
        return parts + [set() for _ in range(len(var.aval.shape) - len(parts))]

    def cut(self, var: Any, size: int, axes: set[str]) -> float:
        """A size divided by the devices along these axes."""
        return size / math.prod(var.aval.sharding.mesh.shape[axis] for axis in axes)

    def size(self, var: Any) -> float:
        """Elements of a value."""
        shape = getattr(var.aval, "shape", ())
        axes = self.axes(var) if shape else []
        return math.prod(self.cut(var, n, a) for n, a in zip(shape, axes, strict=True))


def unknown(what: str) -> Flops:
    """No FLOPs, with a note of what was not counted."""
    return Flops(uncounted={what: 1})


def product(eqn: Eqn, count: float) -> Flops:
    """`count` FLOPs of a product, by the types of its operands."""
    types = {np.dtype(var.aval.dtype).name for var in eqn.invars[:2]}
    if types == {"int8"}:
        return Flops(products=count, int8=count)
    return Flops(products=count, fp8=count * all(name.startswith("float8") for name in types))


def dot(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """dot_general. Per device, a contracted dimension is sharded where both operands are (partial
    sums are reduced later); another one is sharded as in its operand or in the result, since
    slicing an operand that is not sharded costs nothing.
    """
    del values
    ((left, right), (batch, right_batch)) = eqn.params["dimension_numbers"]
    (x, w), out = eqn.invars, eqn.outvars[0]
    of_x, of_w, of_out = counter.axes(x), counter.axes(w), counter.axes(out)
    total, shared = 2.0, set()
    for a, b in zip(left, right, strict=True):
        both = of_x[a] & of_w[b]
        shared |= both
        total *= counter.cut(x, x.aval.shape[a], both)
    free = [a for a in range(x.aval.ndim) if a not in (*left, *batch)]
    free_w = [b for b in range(w.aval.ndim) if b not in (*right, *right_batch)]
    sides = [of_x[a] | of_w[b] for a, b in zip(batch, right_batch, strict=True)]
    sides += [of_x[a] for a in free] + [of_w[b] for b in free_w]
    used = set(shared)
    for size, side, result in zip(out.aval.shape, sides, of_out, strict=True):
        axes = (side | result) - used
        used |= axes
        total *= counter.cut(out, size, axes)
    return product(eqn, total)


def conv(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """conv_general_dilated: each element of the result sums over a window of each channel of its
    group.
    """
    del values
    kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    window = math.prod(kernel[i] for i in spec[1:])  # channels of a group, and space
    batch = eqn.params["batch_group_count"]
    return Flops(products=2.0 * counter.size(eqn.outvars[0]) * window / batch)


def ragged(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """ragged_dot_general: each row is multiplied by the matrix of its group, or, for the gradient
    of the matrices, by a row of the other side.
    """
    del values
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    ((left, _), (batch, _)) = numbers.dot_dimension_numbers
    x, w = eqn.invars[0].aval.shape, eqn.invars[1].aval
    groups = math.prod(w.shape[i] for i in numbers.rhs_group_dimensions)
    rest = math.prod(w.shape) / groups / math.prod(x[i] for i in (*left, *batch))
    return product(eqn, 2.0 * math.prod(x) * rest * counter.ragged)


def scan(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """The body, once for each step. Inputs are constants, carries and scanned arrays; only the last
    have another shape inside, which tells them apart in every version of jax (the parameters
    that count them changed with 0.12).
    """
    body = eqn.params["jaxpr"]
    inside = getattr(body, "jaxpr", body)
    unlike = lambda out, inner: sum(
        a.aval.shape != b.aval.shape for a, b in zip(out, inner, strict=True)
    )
    carried = len(eqn.outvars) - unlike(eqn.outvars, inside.outvars)
    consts = len(eqn.invars) - carried - unlike(eqn.invars, inside.invars)
    args = [*values[:consts], *[None] * (len(values) - consts)]
    return counter.inner(body, args).times(eqn.params["length"])


def loop(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """while: the body times the trip count; where that is not known, once, with a note."""
    p = eqn.params
    of_cond, of_body = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    args = [*values[of_cond:of_body], *[None] * (len(values) - of_body)]
    body = counter.inner(p["body_jaxpr"], args)
    count = trip_count(p, [*values[:of_cond], *values[of_body:]], values[of_cond:of_body])
    return body + unknown("while loop of unknown trip count") if count is None \
        else body.times(count)  # fmt: skip


def cond(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """cond: the branch if its index is known, else the largest."""
    index, *args = values
    every = [counter.inner(branch, args) for branch in eqn.params["branches"]]
    if index is not None:
        return every[int(index)]
    return max(every, key=lambda f: (f.matrix, f.other))


def shard_map(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """shard_map: FLOPs of one device, times the devices unless one is counted (per_device)."""
    found = counter.inner(eqn.params["jaxpr"], values)
    if counter.per_device:
        return found
    mesh, names = eqn.params["mesh"], ("newly_manual_axes", "manual_axes")  # of jax before 0.10
    axes = next(eqn.params[name] for name in names if name in eqn.params)
    return found.times(math.prod(mesh.shape[axis] for axis in axes))


def kernel(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """pallas_call, by the name of the kernel: nothing else identifies what it computes.

    Splash attention has a block of scores for each entry of its mask that is not 0: forward two
    products (scores, values), for the gradient of the queries three, of keys and values four, and
    five where one kernel makes all gradients.
    """
    p = eqn.params  # before jax 0.10 the name is in the debug info alone
    name = p["name"] if "name" in p else p["jaxpr"].debug_info.func_src_info.split(" ")[0]
    if not (found := SPLASH.search(name)):
        return unknown(f"Pallas kernel {name}")
    grid = eqn.params["grid_mapping"]
    first = grid.num_index_operands
    q, k = eqn.invars[first : first + 2]
    length, size = q.aval.shape[-2:]
    parts = any(v.aval.ndim > q.aval.ndim for v in eqn.outvars)  # of dq, one for each block of keys
    products = {"fwd": 2, "dq": 3, "dkv": 5 if parts else 4}[found[1]]
    per_score = 2.0 * products * math.prod(q.aval.shape[:-2]) * size  # one score of every head
    if first < 2:  # no mask: every block is visited
        return Flops(attention=per_score * length * k.aval.shape[-2])
    if values[1] is None:
        full = Flops(attention=per_score * length * k.aval.shape[-2])
        return full + unknown(f"the mask of {name}, taken as full")
    mask = np.asarray(values[1])  # [1 or heads, blocks of queries, blocks of keys]
    area = math.prod(grid.block_mappings[i].block_shape[-2].block_size for i in (0, 1))
    return Flops(attention=per_score * np.count_nonzero(mask) / len(mask) * area)


RULES: dict[str, Callable[[Counter, Eqn, Sequence[Any]], Flops]] = {
    "dot_general": dot,
    "conv_general_dilated": conv,
    "ragged_dot_general": ragged,
    "scan": scan,
    "while": loop,
    "cond": cond,
    "shard_map": shard_map,
    "pallas_call": kernel,
}


def count(function: Callable, *args: Any, **options: Any) -> Flops:
    """Counts the FLOPs of function(*args), with arrays or their shapes; `options` as of Counter."""
    return Counter(**options).closed(jax.make_jaxpr(function)(*args))
