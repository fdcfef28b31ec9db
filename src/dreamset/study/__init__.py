"""Studies: what an Optuna study searches, how it runs, and what it says."""
