"""Plan before you rent: will a run fit on a slice or a cluster that is not here, how fast will it
be, and what will it cost? The command is `python -m lm_jax.plan`.
"""
