"""The training of the bundled base, run by `make base`."""
