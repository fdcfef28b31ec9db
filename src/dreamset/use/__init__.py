"""What a delivered result is used for: predicting new files, exporting data and models."""
