"""Optuna studies of recipes: what is searched, what a trial scores, and what a finished study says."""
