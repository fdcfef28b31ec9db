"""The uses of a delivered result: predicting labels of new files, exporting data and models."""
