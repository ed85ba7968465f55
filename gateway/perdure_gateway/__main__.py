"""`python -P -m perdure_gateway JSON`: how the supervisor starts the gateway process."""

from __future__ import annotations

import sys

from perdure_gateway.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
