"""A rewriting server in a process of its own."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

for package in ("fastapi", "uvicorn"):
    pytest.importorskip(package)


@dataclass(eq=False)
class Running:
    "A server that answers."

    process: subprocess.Popen
    url: str
    log: Path

    @property
    def port(self) -> int:
        return urlsplit(self.url).port

    def ask(self, body=None, method="POST", path="/rewrite", **headers):
        "(status, headers, parsed or raw body) of one request."
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = json.dumps(body).encode() if isinstance(body, dict | list) else body
        connection.request(method, path, sent, {"content-type": "application/json"} | headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        kind = response.getheader("content-type", "")
        return response.status, response.headers, json.loads(text) if text and kind == "application/json" else text.decode()

    def raw(self, *pieces: bytes, pause: float = 0.0) -> socket.socket:
        "A connection on which these bytes were sent."
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        return connection

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def metric(self, name: str) -> float:
        shown = self.ask(method="GET", path="/metrics")[2]
        return sum(float(line.rsplit(" ", 1)[1]) for line in shown.splitlines() if line.split("{")[0].split(" ")[0] == name)

    def end(self, number=signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def start(folder: Path, environment: dict | None = None, **settings) -> Running:
    "Start a server on a free port and wait until it answers."
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.jsonl"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fake_server.py")), json.dumps({"port": 0, **settings})],
            stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(environment or {})})
    address = process.stdout.readline().strip()
    assert address.startswith("http"), log.read_text()
    return Running(process, address, log)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    "One for all tests that leave it as it was."
    running = start(tmp_path_factory.mktemp("server"))
    yield running
    running.end()


@pytest.fixture
def new_server(tmp_path):
    "A function that starts servers for one test."
    begun = []

    def begin(environment=None, **settings):
        begun.append(start(tmp_path / str(len(begun)), environment, **settings))
        return begun[-1]

    yield begin
    for running in begun:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait(30)
        running.process.stdout.close()
