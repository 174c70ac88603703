"""The machine: platform, processes, chips, mesh, sharding, collectives, products.

Imports nothing here: some modules must stay free of jax.
"""
