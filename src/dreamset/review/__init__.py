"""``dreamset review``: a person rejects wrong pictures, and ``dreamset generate`` replaces them."""
