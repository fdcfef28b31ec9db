"""The measures: accuracy with its intervals, distances between sets of images, copies of the shots."""
