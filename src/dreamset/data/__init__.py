"""The data that stages hand each other: splits, folds, synthetic images, adapters, tuned values, cards."""
