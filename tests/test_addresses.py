"""Passwords do not leave the program with the addresses that hold them."""

import pytest

from dreamset.core.addresses import without_password


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("postgresql+psycopg://me:secret@host/studies", "postgresql+psycopg://me:***@host/studies"),
        ("postgresql+psycopg://me@host/x?password=secret", "postgresql+psycopg://me@host/x?password=***"),
        ("postgresql://me@host/x?sslpassword=secret&a=b", "postgresql://me@host/x?sslpassword=***&a=b"),
        ("postgresql://me:se@secret/1@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:secret@host:port/studies", "postgresql://me:***@host:port/studies"),
        ("postgresql://me:my secret@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("sqlite:///studies.db", "sqlite:///studies.db"),
        # Of a web server, alone and in a sentence.
        ("http://me:secret@127.0.0.1:5000", "http://***@127.0.0.1:5000"),
        ("https://secret@host/mlflow", "https://***@host/mlflow"),
        ("https://host/mlflow?password=secret", "https://host/mlflow?password=***"),
        ("https://me:sec/ret@host/mlflow", "https://me:***@host/mlflow"),
        (
            "no answer from https://me:secret@host/x?Password=secret (timed out) in time",
            "no answer from https://***@host/x?Password=*** (timed out) in time",
        ),
    ],
)
def test_passwords_are_masked(text: str, without: str) -> None:
    assert without_password(text) == without
