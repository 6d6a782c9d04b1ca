"""The spot watcher against a metadata service that behaves as AWS's does."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ndt_ray import spot

NOTICE = '{"action": "terminate", "time": "2026-11-21T08:22:00Z"}'


class Metadata(BaseHTTPRequestHandler):
    """IMDSv2: a token must be asked for with PUT and shown; 404 until there is a notice."""

    notices: list[str | None]

    def log_message(self, *_: object) -> None: ...

    def answer(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(200, "token-1") if known else self.answer(400)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "token-1":
            return self.answer(401)
        notice = self.notices.pop(0) if len(self.notices) > 1 else self.notices[0]
        if self.path != "/latest/meta-data/spot/instance-action" or notice is None:
            return self.answer(404)
        return self.answer(503) if notice == "unwell" else self.answer(200, notice)


@pytest.fixture
def service() -> Iterator[tuple[str, list[str | None]]]:
    notices: list[str | None] = [None]
    handler = type("Handler", (Metadata,), {"notices": notices})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/latest", notices
    server.shutdown()
    server.server_close()
    thread.join()


def test_no_notice_is_none(service: tuple[str, list[str | None]]) -> None:
    assert spot.interruption(service[0]) is None


def test_a_notice_drains_the_node_once(service: tuple[str, list[str | None]]) -> None:
    url, notices = service
    notices[:] = [None, None, NOTICE]
    drained: list[tuple[str, str]] = []
    spot.watch("head:6379", lambda: spot.interruption(url), lambda *a: drained.append(a), poll=0.0)
    assert drained == [("head:6379", NOTICE)]


def test_a_service_that_fails_is_asked_again(
    service: tuple[str, list[str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, notices = service
    notices[:] = ["unwell", None, NOTICE]
    drained: list[tuple[str, str]] = []
    spot.watch("head:6379", lambda: spot.interruption(url), lambda *a: drained.append(a), poll=0.0)
    assert drained == [("head:6379", NOTICE)]
    assert "does not answer" in capsys.readouterr().out


def test_the_drain_is_the_one_that_ray_understands() -> None:
    """The options are not covered by Ray's promise of stability: a new Ray must still take them."""
    from ray.scripts.scripts import drain_node

    names = {name for parameter in drain_node.params for name in parameter.opts}
    assert {"--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= names
    (reason,) = (p for p in drain_node.params if p.name == "reason")
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices
