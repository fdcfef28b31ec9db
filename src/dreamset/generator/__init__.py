"""The text-to-image side: the frozen base, its adapters, and how images are drawn from it."""
