"""Studies: the search space of an Optuna study, the loop of its trials, and the analysis of its results."""
