"""A supervisor whose children are stand-ins: `run_supervisor.py <options in JSON>`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from perdure import logs
from perdure_cli.errors import CannotRun
from perdure_cli.events import Role
from perdure_cli.restarts import RestartTiming
from perdure_cli.supervision import Timing
from perdure_cli.supervisor import RunConfig, run

CHILD = str(Path(__file__).with_name("fake_child.py"))


def main() -> int:
    options = json.loads(sys.argv[1])
    times = options.pop("timing", {})
    timing = Timing(**{**times, "restarts": RestartTiming(**times.get("restarts", {}))})
    options.pop("stage")
    break_at_epoch = options.pop("break_at_epoch", None)
    config = RunConfig(
        **{
            "app": "application",
            "workers": 2,
            "engine": "memory",
            "log_json": True,
            **options,
            "data": Path(options["data"]),
            "binds": tuple(options.get("binds", ())),
        }
    )
    logs.setup("supervisor", log_json=config.log_json, level="DEBUG")

    def command(role: Role, text: str) -> list[str]:
        if json.loads(text)["epoch"] == break_at_epoch:
            raise RuntimeError("a defect, for a test")
        return [sys.executable, CHILD, text]

    try:
        return run(config, command=command, timing=timing)
    except CannotRun as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
