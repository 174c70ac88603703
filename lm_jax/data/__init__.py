"""Where do batches come from? Text -> sources -> clean -> tokenizer -> store -> examples ->
stream. Imports no model.
"""
