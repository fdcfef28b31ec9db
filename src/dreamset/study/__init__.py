"""Studies: what a recipe's `search` is chosen by."""
