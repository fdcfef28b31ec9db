"""Speed against plain loops that work as the reference scripts do: ``python -m benchmarks``."""
