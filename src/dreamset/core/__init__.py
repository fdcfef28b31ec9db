"""The ground floor, on which every folder builds: errors, files, images, seeds, locks, shards, devices."""
