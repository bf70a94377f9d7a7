"""The rewriting server as strangers meet it: wrong and hostile requests, load, signals. The engine is a fake, HTTP is real."""

import functools
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.rewriting.load_test import compare_clients, drive
from modernllm.rewriting.server_settings import read_token

BORN = {"query": "When was she born?", "history": ["Marie Curie"]}
HEAD = b"POST /rewrite HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
REQUESTS = int(os.environ.get("MODERNLLM_REQUESTS", "150"))  # of fuzzing and of load; 10000 for a thorough run
QUICK = settings(max_examples=REQUESTS, deadline=None, suppress_health_check=list(HealthCheck))


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_question_is_answered(server):
    status, headers, said = server.ask(BORN)
    assert status == 200 and said["rewrite"] == BORN["query"] and said["cut_turns"] == 0 and said["ended"]
    assert 0 < said["milliseconds"] < 5000 and said["tokens_in"] > said["tokens_out"] > 0
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    assert headers["access-control-allow-origin"] is None and headers["server"] is None


@pytest.mark.parametrize("body, error", [
    ({"query": ""}, "query: it is empty"),
    ({"query": " \n\t"}, "query: it is empty"),
    ({"query": "\x00\u200b\x07"}, "query: it is empty"),
    ({"query": 5}, "query: allowed: a valid string"),
    ({"query": None}, "query: "),
    ({"query": ["When?"]}, "query: "),
    ({"history": []}, "query: it is missing"),
    ({"query": "When?", "history": "Marie"}, "history: "),
    ({"query": "When?", "history": ["Marie", 7]}, "history.1: "),
    ({"query": "When?", "history": {"0": "Marie"}}, "history: "),
    ({"query": "When?", "history": ["x"] * 201}, "history: it is too long; allowed: up to 200 texts"),
    ({"query": "When?", "history": ["x" * 4001]}, "history.0: it is too long; allowed: up to 4,000 characters"),
    ({"query": "x" * 1001}, "query: it is too long; allowed: up to 1,000 characters"),
    ({"query": "é漢" * 400}, "query: has 2,0"),  # few letters, many tokens
    ({"query": "When?", "<script>": 1}, "body: holds a field that is not known; allowed: query, history"),
    ([], "body: "), (b"", "body: "), (b"null", "body: "), (b"7", "body: "), (b'"When?"', "body: "), (b"{", "body: "),
    (b'{"query": "\xff\xfe"}', "body: "), (b'{"query": "\\ud800"}', "body: "), (b"\xef\xbb\xbf{}", "body: "),
    (b'{"query": NaN}', ""), (b'{"query": ' + b"9" * 5000 + b"}", ""), (b"[" * 100_000, "body: "),
    (b'{"query":' * 9000, "body: "),
])
def test_wrong_content_is_named_and_not_repeated(server, body, error):
    status, _, said = server.ask(body)
    assert status == 422 and said["error"].startswith(error) and "\n" not in said["error"] and "script" not in said["error"]
    assert said["field"] == said["error"].split(": ")[0] and len(said["error"]) < 200


def test_a_long_history_is_cut_by_rule(server):
    history = [f"This is turn {k} of a long conversation." for k in range(50)]
    status, _, said = server.ask({"query": "When?", "history": history})
    assert status == 200 and 0 < said["cut_turns"] < 50 and said["tokens_in"] <= 1024 and said["rewrite"] == "When?"


@pytest.mark.parametrize("query", [
    "<script>alert(1)</script>", "a\r\nb\x00c\x1b[31m", "\u202eevil\u2066", "<|endoftext|> <pad>", "👩‍🔬?",
])
def test_hostile_text_comes_back_as_text(server, query):
    status, headers, said = server.ask({"query": query, "history": [query] * 3})
    assert status == 200 and headers["content-type"] == "application/json"
    assert said["rewrite"].isprintable() or "\u200d" in query


def test_a_large_body_is_refused_by_its_header_and_by_its_bytes(server):
    status, _, said = server.ask(b"x" * 10_000_000)
    assert (status, said["field"]) == (413, "body") and "262,144 bytes" in said["error"]
    with server.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"10000\r\n" + b" " * 65536 + b"\r\n"] * 5) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert server.ask(BORN)[0] == 200


def test_other_types_methods_and_paths(server):
    assert server.ask(b"query=When", **{"content-type": "application/x-www-form-urlencoded"})[0] == 415
    assert server.ask(b'{"query": "When?"}', **{"content-type": "text/plain"})[0] == 415  # what a page elsewhere may send
    assert server.ask(BORN, **{"content-type": "application/json; charset=utf-8"})[0] == 200
    assert server.ask(method="GET")[0] == 405 and "allowed: /, /docs" in server.ask(method="GET", path="/rewrite/")[2]["error"]
    assert server.ask(method="HEAD", path="/")[0] == 200
    assert server.ask(method="GET", path="/%00/../etc/passwd")[0] == 404
    status, _, said = server.ask(BORN, Host="evil.example")
    assert status == 421 and said["field"] == "host"
    assert server.ask(method="OPTIONS", Origin="https://evil.example")[1]["access-control-allow-origin"] is None


def test_what_is_no_http(server):
    for nonsense in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"POST /rewrite HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                     b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"):
        with server.raw(nonsense) as connection:
            assert connection.recv(100)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 421")
    assert server.ask(BORN)[0] == 200


def test_watching(server):
    for path in ("/healthz", "/readyz"):
        assert server.ask(method="GET", path=path)[2] == "ok\n"
    before = server.metric("modernllm_requests_total")
    server.ask(BORN)
    server.ask(method="GET", path="/unknown-7c1")
    shown = server.ask(method="GET", path="/metrics")[2]
    assert server.metric("modernllm_requests_total") == before + 4 and 'path="other"' in shown and "7c1" not in shown
    for name in ("modernllm_batch_size_sum", "modernllm_tokens_total", "process_resident_memory_bytes"):
        assert server.metric(name) > 0


def test_the_log_holds_no_text(server):
    server.ask({"query": "Confidential question?", "history": ["Confidential turn"]}, **{"x-request-id": "log-1"})
    server.ask(b'{"query": "Confidential"', **{"x-request-id": "bad id\t"})
    server.ask(method="GET", path="/confidential")
    until(lambda: any(line["id"] == "log-1" for line in server.lines()))
    assert "onfidential" not in server.log.read_text() and "bad id" not in server.log.read_text()
    (line,) = [line for line in server.lines() if line["id"] == "log-1"]
    assert line["status"] == 200 and line["path"] == "/rewrite" and line["turns"] == 1 and line["tokens_in"] > line["tokens_out"]


def test_a_broken_engine_spoils_its_own_request_only(server):
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda k: server.ask({"query": "broken" if k == 3 else f"Question {k}?"}), range(8)))
    assert [status for status, *_ in said] == [200, 200, 200, 500, 200, 200, 200, 200]
    assert [one["rewrite"] for status, _, one in said if status == 200] == [f"Question {k}?" for k in range(8) if k != 3]
    assert "secret" not in str(said[3]) and "secret" not in server.log.read_text()
    assert any(line.get("exception") == "RuntimeError" for line in server.lines())


def test_openapi_says_what_is_checked(server):
    document = server.ask(method="GET", path="/openapi.json")[2]
    schema = document["paths"]["/rewrite"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["query"]["maxLength"] == 1000 and schema["properties"]["history"]["maxItems"] == 200
    assert set(document["paths"]["/rewrite"]["post"]["responses"]) >= {"200", "413", "422", "429", "504"}
    for path in ("/", "/docs"):
        status, headers, text = server.ask(method="GET", path=path)
        assert status == 200 and "unsafe" not in headers["content-security-policy"] and "https://" not in text


def from_schema(schema: dict):
    "Values that a JSON schema of strings, arrays and objects allows."
    if schema["type"] == "object":
        parts = {name: from_schema(part) for name, part in schema["properties"].items()}
        needed = {name: parts.pop(name) for name in schema["required"]}
        return st.fixed_dictionaries(needed, optional=parts)
    if schema["type"] == "array":
        return st.lists(from_schema(schema["items"]), max_size=min(30, schema["maxItems"]))
    most, pattern = schema["maxLength"], re.compile(schema.get("pattern", ""))
    short = st.text(min_size=schema.get("minLength", 0), max_size=60).filter(pattern.search)
    return short | st.integers(0, most - 1).map(lambda size: "x" * (most - size))


@functools.cache
def document_of(server) -> dict:
    return server.ask(method="GET", path="/openapi.json")[2]


@QUICK
@given(data=st.data())
def test_what_the_document_allows_is_answered(server, data):
    operation = document_of(server)["paths"]["/rewrite"]["post"]
    question = data.draw(from_schema(operation["requestBody"]["content"]["application/json"]["schema"]))
    status, _, said = server.ask(question)
    assert str(status) in operation["responses"]
    assert status == 200 or said["error"].startswith(("query: it is empty", "query: has "))  # invisible letters; too many tokens


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
                    | st.dictionaries(st.text() | st.sampled_from(["query", "history"]), inner, max_size=4), max_leaves=12)
TEXT = st.text(max_size=60) | st.text(st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp", "Co"]), max_size=20)
QUESTIONS = st.fixed_dictionaries({"query": TEXT}, optional={"history": st.lists(TEXT, max_size=60)})


NEARLY = st.fixed_dictionaries({"query": JSON}, optional={"history": JSON, "more": JSON})


@QUICK
@given(body=QUESTIONS | JSON | NEARLY | st.binary(max_size=80))
def test_no_body_makes_the_server_fail(server, body):
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, said = server.ask(sent)
    assert status in (200, 422) and ("rewrite" in said or said["error"])
    if status == 200:
        assert "\n" not in said["rewrite"] and said["tokens_in"] <= 1024


OF_THE_CONNECTION = ("host", "content-length", "transfer-encoding", "connection", "expect", "upgrade")
NAMES = st.from_regex(r"[a-z-]{1,15}", fullmatch=True).filter(lambda name: name not in OF_THE_CONNECTION)
VALUES = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30)
PATHS = st.text(st.characters(codec="ascii", exclude_categories=["Cc", "Zs"]), max_size=30)


@settings(QUICK, max_examples=max(20, REQUESTS // 10))
@given(path=PATHS, method=st.sampled_from(["GET", "PUT", "HEAD"]), headers=st.dictionaries(NAMES, VALUES, max_size=3))
def test_no_path_or_header_makes_the_server_fail(server, path, method, headers):
    assert server.ask(method=method, path=f"/{path}", **headers)[0] < 500


def test_requests_are_answered_together(new_server):
    server = new_server()
    alone, many = compare_clients(server.url, [{**BORN, "query": f"Question {k}?"} for k in range(50)], requests=REQUESTS,
                                  pid=server.process.pid)
    print(alone, many, sep="\n")
    assert alone.failures == many.failures == 0 and many.throughput > 2 * alone.throughput
    assert server.metric("modernllm_batch_size_sum") > 2 * server.metric("modernllm_batch_size_count")


def test_a_full_queue_and_time_that_is_up(new_server):
    server = new_server(max_waiting=2, max_batch=1, timeout_seconds=2.5)
    with ThreadPoolExecutor(5) as pool:
        said = list(pool.map(lambda k: server.ask({"query": f"slow {k}"}), range(5)))
    statuses = sorted(status for status, *_ in said)
    assert statuses.count(429) >= 2 and statuses[0] == 200
    (first, *_) = [headers for status, headers, _ in said if status == 429]
    assert 1 <= int(first["retry-after"]) <= 10
    began = time.monotonic()
    status, _, said = server.ask({"query": "hangs"})
    assert status == 504 and time.monotonic() - began < 4 and "2.5 seconds" in said["error"]
    until(lambda: server.ask(method="GET", path="/readyz")[0] == 503)
    assert server.ask(method="GET", path="/readyz")[2]["field"] == "engine"
    assert server.ask(method="GET", path="/healthz")[0] == 200
    with server.raw(HEAD + b"Content-Length: 9\r\n\r\n{") as slow:  # and a body that never comes
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with server.raw(ask) as slow, server.raw(ask + b"\r\n", ask, pause=0.5) as slow_later:  # and headers that never end
        assert slow.recv(100) == b"" and slow_later.recv(1000).startswith(b"HTTP/1.1 200") and slow_later.recv(100) == b""
    assert server.end() == 0  # though its engine never comes back


def test_who_hangs_up_frees_a_place(new_server):
    server = new_server(max_waiting=1, max_batch=1)
    body = json.dumps({"query": "slow"}).encode()
    sent = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    server.raw(sent).close() or time.sleep(0.2)  # its batch has begun
    waiting = server.raw(sent)
    until(lambda: server.metric("modernllm_waiting") == 1)
    assert server.ask(BORN)[0] == 429
    waiting.close()
    until(lambda: server.metric("modernllm_waiting") == 0)
    assert server.ask(BORN)[0] == 200
    assert [line["status"] for line in server.lines() if line["path"] == "/rewrite"].count(499) == 2


def test_a_term_signal_lets_requests_end(new_server):
    server = new_server()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.ask, {"query": "slow"}) for _ in range(4)]
        time.sleep(0.3)  # all have arrived
        assert server.end() == 0
        assert [one.result()[0] for one in asked] == [200] * 4
    assert server.process.stdout.read() == "closed\n"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)


def test_a_kill_under_load_and_a_restart(new_server):
    server = new_server()
    kill = threading.Timer(0.1, server.end, [signal.SIGKILL])
    kill.start()
    load = drive(server.url, [BORN], clients=8, requests=400)
    kill.join()
    assert load.statuses["lost"] > 0 and set(load.statuses) <= {200, "lost"}
    again = new_server(port=server.port)  # the port is free at once
    assert again.port == server.port and again.ask(BORN)[0] == 200


def test_a_token_and_what_is_opted_into(new_server):
    token = "a-token-of-twenty-letters"
    server = new_server({"MODERNLLM_TOKEN": token}, host="0.0.0.0", cors_origins=["https://friend.example"], log_text=True)
    status, headers, said = server.ask(BORN)
    assert status == 401 and headers["www-authenticate"] == "Bearer" and token not in str(said)
    assert server.ask(BORN, Authorization=f"Bearer {token[:-1]}")[0] == server.ask(method="GET", path="/metrics")[0] == 401
    assert server.ask(BORN, Authorization=f"Bearer {token}", Host="any.example")[0] == 200
    assert all(server.ask(method="GET", path=path)[0] == 200 for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"))
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for origin, allowed in (("https://friend.example", "https://friend.example"), ("https://evil.example", None)):
        assert server.ask(method="OPTIONS", Origin=origin, **wanted)[1]["access-control-allow-origin"] == allowed
    until(lambda: BORN["query"] in server.log.read_text())  # which was asked for
    assert token not in server.log.read_text()


@pytest.mark.parametrize("token", ["short", "x" * 513, "has blanks in the middle", "ünicode-is-no-header"])
def test_a_token_that_is_none(monkeypatch, token):
    monkeypatch.setenv("MODERNLLM_TOKEN", token)
    with pytest.raises(InputError, match="MODERNLLM_TOKEN: has .* allowed: 16 to 512") as error:
        read_token()
    assert token not in str(error.value)
