"""Foundations that nothing of the domain enters: errors, files, images, seeds, locks, shards, devices."""
