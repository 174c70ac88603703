"""One file for each family of Hugging Face models."""
