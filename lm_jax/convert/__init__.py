"""Exchange with other libraries: `import_hf(directory)`, `export_hf(model, config, directory)`."""

from lm_jax.convert.hf import export_hf, import_hf

__all__ = ["export_hf", "import_hf"]
