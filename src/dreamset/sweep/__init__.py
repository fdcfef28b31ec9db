"""The stages in other workspaces: cross-validation, cells of a table, the table over seeds."""
