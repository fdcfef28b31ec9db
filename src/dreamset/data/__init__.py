"""What stages hand each other: splits, folds, synthetic images, adapters, tuned values, cards."""
