"""``dreamset review``: a person ticks off wrong pictures, and ``dreamset generate`` replaces them."""
