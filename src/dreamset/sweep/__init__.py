"""The stages run in other workspaces: cross-validation, and the cells of the table over seeds."""
