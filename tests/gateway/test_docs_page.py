"""The page that lets one try methods stands by itself, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from perdure_gateway.docs_page import DOCS_PAGE, DOCS_POLICY


def script() -> str:
    [text] = re.findall(r"<script>(.*?)</script>", DOCS_PAGE.decode(), re.DOTALL)
    return text


def test_the_page_loads_nothing_from_elsewhere() -> None:
    assert not re.findall(rb"""(?:src|href)=["']?(?:https?:)?//""", DOCS_PAGE)
    assert not re.findall(rb"url\(|@import|https?://", DOCS_PAGE)


def test_its_policy_lets_its_own_script_run_and_no_other() -> None:
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in DOCS_POLICY.decode()
    assert b"default-src 'none'" in DOCS_POLICY
    assert b"unsafe-eval" not in DOCS_POLICY
    assert not re.search(rb"<[^>]+ on\w+=", DOCS_PAGE), "handlers in attributes would be blocked"


def test_what_a_server_sends_is_never_taken_for_markup() -> None:
    assert "innerHTML" not in script()
    assert "insertAdjacentHTML" not in script()
    assert "document.write" not in script()


def test_its_script_can_be_read(tmp_path: Path) -> None:
    assert script().count("{") == script().count("}")
    node = shutil.which("node")
    if node is not None:
        file = tmp_path / "page.js"
        file.write_text(script())
        subprocess.run([node, "--check", str(file)], check=True, timeout=30)
