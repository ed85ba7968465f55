"""``python -P -m perdure_worker CONFIG_JSON``: one worker process, started by the supervisor."""

from __future__ import annotations

import sys

from perdure_worker.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
