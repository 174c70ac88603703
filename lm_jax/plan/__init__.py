"""Planning before renting: memory, speed and cost of a run on a slice or cluster that is not here.
The command is `python -m lm_jax.plan`.
"""
