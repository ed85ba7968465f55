"""The guide's code runs: each page's app.py is served, each client.py is run and prints what the page says.

A page is Markdown.  Its Python blocks begin with `# app.py` (all of a page's are one file) or `# client.py`
(each is a program of its own, followed by a `text` block with what it prints).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from processes.cluster import ROOT, environment, running_cluster

pytestmark = pytest.mark.processes

PAGES = [*sorted((ROOT / "docs" / "guide").glob("*.md")), ROOT / "docs" / "coming-from.md"]
RUN_TIMEOUT_S = 60.0
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


class Page(NamedTuple):
    app: str
    programs: list[tuple[str, str]]
    """Each with what it prints."""


def read_page(text: str) -> Page:
    app, programs = "", []
    blocks = [(kind, body) for kind, body in _BLOCK.findall(text)]
    for index, (kind, body) in enumerate(blocks):
        if kind != "python":
            continue
        name, _, code = body.partition("\n")
        if name == "# app.py":
            app += code + "\n\n"
        else:
            assert name == "# client.py", f"a block of Python that no test runs: {name!r}"
            following = blocks[index + 1] if index + 1 < len(blocks) else ("", "")
            assert following[0] == "text", f"what does this print? {code[:80]!r}"
            programs.append((code, following[1]))
    return Page(app, programs)


@pytest.mark.parametrize(
    "path", [page for page in PAGES if "```python" in page.read_text("utf-8")], ids=lambda p: p.stem
)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(path: Path, tmp_path: Path) -> None:
    page = read_page(path.read_text("utf-8"))
    app = tmp_path / "app.py"
    app.write_text(
        page.app or "from perdure import DurableObject\nclass Nothing(DurableObject): ...\n", "utf-8"
    )
    serves_http = any("PERDURE_HTTP" in code for code, _ in page.programs)
    options = ("--http", "127.0.0.1:0") if serves_http else ()
    with running_cluster(app, tmp_path / "data", options=options) as cluster:
        for number, (code, printed) in enumerate(page.programs):
            program = tmp_path / f"client{number}.py"
            program.write_text(code, "utf-8")
            ended = subprocess.run(
                [sys.executable, str(program)],
                env={
                    **environment(),
                    "PERDURE_URL": cluster.url,
                    "PYTHONDONTWRITEBYTECODE": "1",
                    **({"PERDURE_HTTP": cluster.http} if serves_http else {}),
                },
                capture_output=True,
                text=True,
                timeout=RUN_TIMEOUT_S,
                cwd=tmp_path,
            )
            assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
            assert ended.stdout == printed
        cluster.stop()


def test_the_links_of_the_pages_lead_somewhere() -> None:
    pages = [*PAGES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in _LINK.findall(page.read_text("utf-8"))
        if not os.path.exists(page.parent / target)
    ]
    assert not broken


def test_a_block_that_nobody_runs_and_a_program_without_its_output_are_found() -> None:
    with pytest.raises(AssertionError, match="no test runs"):
        read_page("```python\nprint(1)\n```\n")
    with pytest.raises(AssertionError, match="what does this print"):
        read_page("```python\n# client.py\nprint(1)\n```\n")
    page = read_page(
        "```python\n# app.py\na = 1\n```\n\n```python\n# client.py\nprint(1)\n```\n\n```text\n1\n```\n"
    )
    assert page == Page("a = 1\n\n\n", [("print(1)\n", "1\n")])
