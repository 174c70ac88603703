"""Tokenizers and the token store."""
