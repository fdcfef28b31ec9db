"""What every other folder builds on: errors, files, images, seeds, locks, shards, devices."""
