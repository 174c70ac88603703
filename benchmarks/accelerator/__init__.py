"""Measurements of one accelerator: `bash benchmarks/accelerator.sh --help`."""
