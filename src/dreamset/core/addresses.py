"""Addresses of stores and servers, as they may be printed and recorded."""

from __future__ import annotations

import re
from typing import Final

# On the web a name without a password is often a token.
_WEB: Final = re.compile(r"(https?://)[^/\s]*@", re.IGNORECASE)
# Up to the last @: one that stands in the password itself, unescaped, hides too much and never too little.
_LOGIN: Final = re.compile(r"(\w://[^:/@\s]*):.*@")
_QUERY: Final = re.compile(r"([?&][^=&\s]*password[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """Return ``text`` without the passwords of the addresses in it: those of logins and those of queries.

    Of a web address the user's name goes, too. The text may be one address, usable or not, or a sentence with some.
    """
    return _QUERY.sub(r"\1***", _LOGIN.sub(r"\1:***@", _WEB.sub(r"\1***@", text)))
