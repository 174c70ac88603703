"""Trip counts of while loops in a jaxpr."""

import math
from collections.abc import Sequence
from typing import Any

from jax.extend import core


def trip_count(params: dict[str, Any], values: Sequence[Any], consts: Sequence[Any]) -> int | None:
    """Iterations of `while i < n: ...; i += s`; None unless i, n and s are known, and s > 0."""
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
            if len(by) == 1 and by[0] is not None and by[0] > 0:
                return max(0, math.ceil((int(stop) - int(start)) / int(by[0])))
    return None
