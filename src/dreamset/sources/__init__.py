"""Where real images come from: one module per source."""
