"""Stands in for a router or a worker: speaks the control protocol, does as told, writes down what happens.

Run as `fake_child.py <configuration>` with the stage folder in the environment.  `<stage>/<child>.json`
holds the behaviour of its next incarnations, `<stage>/journal` gets one line for each event:

    exit_before_ready   exit with this code instead of becoming ready
    never_ready         stay without becoming ready
    exit_at             exit with `exit_code` once this file is in the stage
    drain_until         after the order to stop, end only once this file is in the stage
    quiet_when          after the order to stop, say "quiet" once this file is in the stage, end when told
    ignore_stop         never end when told to
    reconnect_at        once this file is in the stage, go on over a new connection
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import zmq

from perdure.codec import decode, encode

PR_SET_PDEATHSIG = 1
BEAT_S = 0.5
LOOK_S = 0.01


class FakeChild:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.role = "worker" if "door" in config else "router"
        self.index = config.get("index", 0)
        self.name = f"worker-{self.index}" if self.role == "worker" else "router"
        self.stage = Path(os.environ["STAGE"])
        self.context = zmq.Context()
        self.stopping = False

    def behaviour(self) -> dict[str, Any]:
        try:
            return json.loads((self.stage / f"{self.name}.json").read_text())
        except FileNotFoundError:
            return {}

    def write(self, event: str, **facts: Any) -> None:
        entry = {"t": time.monotonic(), "child": self.name, "event": event, "pid": os.getpid()}
        line = json.dumps({**entry, "epoch": self.config["epoch"], **facts}) + "\n"
        journal = os.open(self.stage / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(journal, line.encode())
        os.close(journal)

    def persisted_epoch(self) -> int:
        data = Path(self.config["shard"]).parent if self.role == "worker" else None
        if data is None:
            return -1
        return json.loads((data / "state.json").read_text())["epochs"][self.index]

    def connect(self) -> zmq.Socket[bytes]:
        control = self.context.socket(zmq.DEALER)
        control.setsockopt(zmq.LINGER, 0)
        control.connect(self.config["control"])
        return control

    def say(self, control: zmq.Socket[bytes], kind: str, **facts: Any) -> None:
        epoch, pid = self.config["epoch"], os.getpid()
        head = {"type": kind, "role": self.role, "index": self.index, "epoch": epoch, "pid": pid}
        control.send(encode({**head, **facts}))

    def start(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        assert os.getppid() == self.config["parent"]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        self.write(
            "started",
            config=self.config,
            group=os.getpgrp(),
            umask=os.umask(0o077),
            persisted_epoch=self.persisted_epoch(),
            argv=sys.orig_argv,
        )

    def stop(self) -> None:
        self.stopping = True
        self.write("stop")

    def finish(self, code: int) -> None:
        self.write("exit", code=code)
        sys.stdout.flush()
        os._exit(code)

    def run(self) -> None:
        self.start()
        orders = self.behaviour()
        if "exit_before_ready" in orders:
            self.finish(orders["exit_before_ready"])
        # Signals arrive while polling: their number in a socket ends the poll.
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        endpoint = self.config["door"] if self.role == "worker" else self.config["endpoints"][0]
        door = self.context.socket(zmq.ROUTER)
        door.bind(endpoint)
        control = self.connect()
        if not orders.get("never_ready"):
            self.write("ready")
            self.say(control, "ready", endpoint=endpoint)
        self.serve(orders, control, reader)

    def serve(self, orders: dict[str, Any], control: zmq.Socket[bytes], reader: socket.socket) -> None:
        poller = zmq.Poller()
        poller.register(control, zmq.POLLIN)
        poller.register(reader, zmq.POLLIN)
        beat_at = time.monotonic()
        while True:
            ready = dict(poller.poll(LOOK_S * 1_000))
            if reader.fileno() in ready:
                reader.recv(64)
            if control in ready:
                message = decode(control.recv())
                self.write(message["type"], map=message.get("map"))
                if message["type"] == "close":
                    self.finish(0)
            if self.stopping and self.seen(orders, "quiet_when", False):
                orders["ignore_stop"] = orders.pop("quiet_when")
                self.write("quiet")
                self.say(control, "quiet")
            waits = "quiet_when" in orders or orders.get("ignore_stop")
            if self.stopping and not waits and self.seen(orders, "drain_until", True):
                self.finish(0)
            if self.seen(orders, "exit_at", False):
                self.finish(orders["exit_code"])
            if self.seen(orders, "reconnect_at", False):
                orders.pop("reconnect_at")
                poller.unregister(control)
                control.close()
                control = self.connect()
                poller.register(control, zmq.POLLIN)
            if time.monotonic() >= beat_at and not orders.get("never_ready"):
                beat_at += BEAT_S
                self.say(control, "beat", stats={})

    def seen(self, orders: dict[str, Any], key: str, without: bool) -> bool:
        return (self.stage / orders[key]).exists() if key in orders else without


if __name__ == "__main__":
    FakeChild(json.loads(sys.argv[1])).run()
