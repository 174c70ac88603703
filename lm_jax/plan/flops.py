"""Floating point operations of a function, counted from its jaxpr with loops and recomputation.

The compiler's own count takes the body of a loop once and a Pallas kernel for nothing. A product of
matrices [M, K] [K, N] is 2 M N K; everything else is one for each element that it makes. A function
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

# One operation for each element of the result.
ELEMENTWISE = {
    "add", "add_any", "sub", "mul", "div", "rem", "neg", "abs", "sign", "floor", "ceil",
    "round", "exp", "exp2", "expm1", "log", "log1p", "log2", "tanh", "logistic", "sin", "cos",
    "tan", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow", "square", "erf", "erf_inv", "erfc",
    "max", "min", "clamp", "select_n", "lt", "le", "gt", "ge", "eq", "ne",
}  # fmt: skip
# And of the operand.
REDUCTIONS = {
    "reduce", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum", "cumlogsumexp",
    "cummax", "argmax", "argmin",
}  # fmt: skip
Eqn = Any  # jax.extend.core.JaxprEqn, whose variables have no shapes for a type checker
SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating point operations by kind; and what could not be counted, with how often it is."""

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
        met = {n: self.uncounted.get(n, 0) + more.uncounted.get(n, 0) for n in names}
        sums = {name: getattr(self, name) + getattr(more, name) for name in FLOPS}
        return Flops(**sums, uncounted=met)

    def times(self, count: float) -> "Flops":
        """`count` such in a row."""
        each = {name: getattr(self, name) * count for name in FLOPS}
        return Flops(**each, uncounted=self.uncounted)


FLOPS = [field.name for field in dataclasses.fields(Flops) if field.name != "uncounted"]


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts jaxprs. per_device: what one device does, and not all of them together."""

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
        """The mesh axes that cut each dimension of a value."""
        spec = getattr(getattr(var.aval, "sharding", None), "spec", None)
        if not self.per_device or spec is None:
            return [set() for _ in var.aval.shape]
        parts = [{p} if isinstance(p, str) else set(p or ()) for p in spec]
        return parts + [set() for _ in range(len(var.aval.shape) - len(parts))]

    def cut(self, var: Any, size: int, axes: set[str]) -> float:
        """A size over the devices along these axes."""
        return size / math.prod(var.aval.sharding.mesh.shape[axis] for axis in axes)

    def size(self, var: Any) -> float:
        """Elements of a value."""
        shape = getattr(var.aval, "shape", ())
        axes = self.axes(var) if shape else []
        return math.prod(self.cut(var, n, a) for n, a in zip(shape, axes, strict=True))


def unknown(what: str) -> Flops:
    """Nothing is counted, and that is said."""
    return Flops(uncounted={what: 1})


def product(eqn: Eqn, count: float) -> Flops:
    """So many operations of a product of these operands."""
    types = {np.dtype(var.aval.dtype).name for var in eqn.invars[:2]}
    if types == {"int8"}:
        return Flops(products=count, int8=count)
    return Flops(products=count, fp8=count * all(name.startswith("float8") for name in types))


def dot(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """dot_general. Of one device: a contracted dimension is cut where both sides are (their sums
    meet later); another one is cut as in its operand or in the result, since the operand that is
    not is cut first, for nothing.
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
    """conv_general_dilated: each element of the result meets a window of each channel of its
    group.
    """
    del values
    kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    window = math.prod(kernel[i] for i in spec[1:])  # channels of a group, and space
    batch = eqn.params["batch_group_count"]
    return Flops(products=2.0 * counter.size(eqn.outvars[0]) * window / batch)


def ragged(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """ragged_dot_general: each row meets the matrix of its group, or, for the gradient of the
    matrices, a row of the other side.
    """
    del values
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    ((left, _), (batch, _)) = numbers.dot_dimension_numbers
    x, w = eqn.invars[0].aval.shape, eqn.invars[1].aval
    groups = math.prod(w.shape[i] for i in numbers.rhs_group_dimensions)
    rest = math.prod(w.shape) / groups / math.prod(x[i] for i in (*left, *batch))
    return product(eqn, 2.0 * math.prod(x) * rest * counter.ragged)


def scan(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """The body, once for each step. What it is given is constants, what is carried and what is
    taken apart, which alone has another shape inside; how many of each, jax says since 0.12 in
    another way than before.
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
    """while: as a loop from one known number to another; else its body once, and that is said."""
    p = eqn.params
    of_cond, of_body = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    args = [*values[of_cond:of_body], *[None] * (len(values) - of_body)]
    body = counter.inner(p["body_jaxpr"], args)
    count = steps(p, [*values[:of_cond], *values[of_body:]], values[of_cond:of_body])
    return body + unknown("while of a number of steps that is not known") if count is None \
        else body.times(count)  # fmt: skip


def steps(params: dict[str, Any], values: Sequence[Any], consts: Sequence[Any]) -> int | None:
    """Number of iterations of `while i < n: ...; i += s` where i, n and s are known."""
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    if len(cond.eqns) != 1 or cond.eqns[0].primitive.name != "lt":
        return None
    known = dict(zip((*cond.jaxpr.constvars, *cond.jaxpr.invars), (*cond.consts, *values),
                     strict=True))  # fmt: skip
    read = lambda v, known: v.val if isinstance(v, core.Literal) else known.get(v)
    index, (start, stop) = cond.eqns[0].invars[0], (read(v, known) for v in cond.eqns[0].invars)
    if start is None or stop is None or isinstance(index, core.Literal):
        return None
    place = cond.jaxpr.invars.index(index) - params["cond_nconsts"]
    carried = body.jaxpr.invars[params["body_nconsts"] + place]
    of_body = dict(zip((*body.jaxpr.constvars, *body.jaxpr.invars[: len(consts)]),
                       (*body.consts, *consts), strict=True))  # fmt: skip
    for eqn in body.eqns:
        if eqn.outvars[0] is body.jaxpr.outvars[place] and eqn.primitive.name == "add":
            by = [read(v, of_body) for v in eqn.invars if v is not carried]
            if len(by) == 1 and by[0] is not None:
                return max(0, math.ceil((int(stop) - int(start)) / int(by[0])))
    return None


def cond(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """The branch that is known to run, or the largest."""
    index, *args = values
    every = [counter.inner(branch, args) for branch in eqn.params["branches"]]
    if index is not None:
        return every[int(index)]
    return max(every, key=lambda f: (f.matrix, f.other))


def shard_map(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """FLOPs of one device, times the devices where all of them are counted."""
    found = counter.inner(eqn.params["jaxpr"], values)
    if counter.per_device:
        return found
    mesh, names = eqn.params["mesh"], ("newly_manual_axes", "manual_axes")  # of jax before 0.10
    axes = next(eqn.params[name] for name in names if name in eqn.params)
    return found.times(math.prod(mesh.shape[axis] for axis in axes))


def kernel(counter: Counter, eqn: Eqn, values: Sequence[Any]) -> Flops:
    """pallas_call, by the name of the kernel: nothing else says what it computes.

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
    each = 2.0 * products * math.prod(q.aval.shape[:-2]) * size  # of one score of every head
    if first < 2:  # no mask: everything is visited
        return Flops(attention=each * length * k.aval.shape[-2])
    if values[1] is None:
        full = Flops(attention=each * length * k.aval.shape[-2])
        return full + unknown(f"the mask of {name}, taken as full")
    mask = np.asarray(values[1])  # [1 or heads, blocks of queries, blocks of keys]
    area = math.prod(grid.block_mappings[i].block_shape[-2].block_size for i in (0, 1))
    return Flops(attention=each * np.count_nonzero(mask) / len(mask) * area)


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
