"""How the bundled base was trained: `make base`."""
