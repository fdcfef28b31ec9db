"""Addresses of stores, as they may be printed and recorded."""

from __future__ import annotations

import re
from typing import Final

# Up to the last @: one that stands in the password itself, unescaped, hides too much and never too little.
_LOGIN: Final = re.compile(r"^([^:/]+://[^:/@]*):.*@")
_QUERY: Final = re.compile(r"([?&][^=&]*password[^=&]*=)[^&]*", re.IGNORECASE)


def shown(url: str) -> str:
    """The URL without its passwords, that of the login and those of the query, whether or not it can be used."""
    return _QUERY.sub(r"\1***", _LOGIN.sub(r"\1:***@", url))
