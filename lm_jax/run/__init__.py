"""A run on disk: folder, checkpoints, metrics, report, watchdog.

Imports nothing here: some modules must stay free of jax.
"""
