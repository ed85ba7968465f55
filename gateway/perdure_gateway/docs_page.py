"""The page at /docs: `docs.html` beside this file, and the policy that lets nothing else run in it.

Guarantees a page that needs no other server, and in which only its own script runs.  Read once, at import.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

__all__ = ["DOCS_PAGE", "DOCS_POLICY"]


def _policy(page: bytes) -> bytes:
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    hashes = b" ".join(b"'sha256-%b'" % base64.b64encode(hashlib.sha256(text).digest()) for text in scripts)
    return (
        b"default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; script-src " + hashes
    )


DOCS_PAGE: Final = files("perdure_gateway").joinpath("docs.html").read_bytes()
DOCS_POLICY: Final = _policy(DOCS_PAGE)
