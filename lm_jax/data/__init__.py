"""From text to batches: documents, cleaning, tokenizer, token store, examples, stream. Imports no
model.
"""
