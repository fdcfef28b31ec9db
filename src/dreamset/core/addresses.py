"""Addresses of stores and servers, as they may be printed and recorded."""

from __future__ import annotations

import re
from typing import Final

# Up to the last @: one that stands in the password itself, unescaped, hides too much and never too little.
_LOGIN: Final = re.compile(r"^([^:/]+://[^:/@]*):.*@")
_QUERY: Final = re.compile(r"([?&][^=&]*password[^=&]*=)[^&]*", re.IGNORECASE)


def without_password(url: str) -> str:
    """An address without its passwords, those of the login and of the query, whether or not it can be used."""
    return _QUERY.sub(r"\1***", _LOGIN.sub(r"\1:***@", url))
