"""Studies: the values of a recipe's knobs, chosen by what they give a classifier on real images."""
