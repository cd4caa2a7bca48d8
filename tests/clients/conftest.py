"""Servers for real clients: the binary as a process, with the real model."""

import os
import re
import signal
import subprocess
import time
import urllib.request

import openai
import pytest

# How long anything may take before a test calls it hung. A bound for failing, never a measure.
PATIENCE = 120


class Server:
    """`appliance serve` on a free port."""

    def __init__(self, log, *flags):
        model = os.environ["APPLIANCE_TEST_MODEL"]
        listen = "127.0.0.1:0"
        command = [os.environ["APPLIANCE_BIN"], "serve", "--model", model, "--listen", listen]
        settings = ("APPLIANCE_", "HF_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        self.url = None
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                command + list(flags), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=clean
            )
        eventually("the server listens", self.is_listening)
        eventually("the server is ready", self.is_ready)

    def is_listening(self):
        """Whether the log says where. A port that is looked for beforehand may be taken by then."""
        assert self.process.poll() is None, self.log.read_text()
        told = re.search(r"address=(\S+) .*\n", self.log.read_text())
        self.url = told and "http://" + told[1]
        return told

    def is_ready(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=PATIENCE) as answer:
                return answer.status == 200
        except OSError:
            return False

    def metric(self, name):
        """The value of the first series of a name."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        values = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return float(values[0].rsplit(" ", 1)[1])

    def client(self, kind=openai.OpenAI, **options):
        options = {"max_retries": 0, "timeout": PATIENCE, "api_key": "none", **options}
        return kind(base_url=self.url + "/v1", **options)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def eventually(what, fact):
    """Waits until `fact()` holds."""
    end = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < end, "not within %d s: %s" % (PATIENCE, what)
        time.sleep(0.02)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server as it comes."""
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    """A server with room for one request and for small bodies."""
    flags = ["--max-running", "1", "--max-queue", "0", "--body-limit", "64KiB"]
    server = Server(tmp_path_factory.mktemp("narrow") / "log", *flags)
    yield server
    assert server.stop() == 0, server.log.read_text()


def new_key(*flags):
    """A key made by the binary: the secret, and the line that stores it."""
    command = [os.environ["APPLIANCE_BIN"], "keys", "new", *flags]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """A server with keys: `free`, `slow` of two requests a minute, `poor` with next to no money."""
    directory = tmp_path_factory.mktemp("guarded")
    flags = {
        "free": [],
        "slow": ["--requests-per-minute", "2"],
        "poor": ["--budget-per-day", "0.000001"],
        "other": ["--model", "another"],
    }
    keys = {name: new_key("--id", name, *flags) for name, flags in flags.items()}
    file = directory / "keys"
    file.write_text("\n".join(line for _, line in keys.values()))
    server = Server(directory / "log", "--keys-file", str(file), "--price-output", "1")
    server.keys = {name: secret for name, (secret, _) in keys.items()}
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
