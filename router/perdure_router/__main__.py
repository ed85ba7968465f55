"""`python -P -m perdure_router JSON`: how the supervisor starts the router process."""

from __future__ import annotations

import sys

from perdure_router.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
