"""Evaluation: held-out text, perplexity, baselines."""
