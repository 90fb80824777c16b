"""Requests by the standard library alone, for checks that need many of them."""

import http.client
import json
import urllib.parse
import urllib.request


def connect(address, timeout=300):
    return http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=timeout)


def post(address, path, body, timeout=300):
    """Status, headers and body of a request."""
    connection = connect(address, timeout)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def ask(address, path, body):
    """The reply to a request that must succeed."""
    status, _, data = post(address, path, body)
    assert status == 200, (status, data[:500])
    return json.loads(data)


def events(reply):
    """The data of a stream of events, as they come."""
    for line in reply:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


def counters(address):
    """All figures of /metrics by their names."""
    with urllib.request.urlopen(address + "/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}
