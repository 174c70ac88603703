"""A model in use: sampling, scoring, `LanguageModel`."""
