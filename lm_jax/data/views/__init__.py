"""Examples of a token store, one view for each objective."""
