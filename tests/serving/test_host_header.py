"""By which names a server may be called: a web page whose own name leads to 127.0.0.1 (DNS rebinding) reads nothing."""

import asyncio
import json

import pytest

from vit_search.errors import ServingError
from vit_search.serving import listener
from vit_search.serving.endpoint import Endpoint, ReplicaStatus
from vit_search.serving.host_header import hosts_of
from vit_search.serving.limits import ReplicaLimits
from vit_search.serving.metrics import Metrics

MORE = ("models.example.org", "Gateway.")


def answers(listens_on, host, *, version="1.1", more=MORE):
    """The status that a request with this Host gets before anything else is looked at; 200 where it may be answered."""
    headers = [(b"accept", b"*/*"), *((b"host", one.encode("latin-1")) for one in ([host] if isinstance(host, str) else host))]
    problem = hosts_of(listens_on, more).problem(headers, version)
    return problem[0] if problem else 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.8.0.3:1", "[::1]", "[::1]:8000"])
@pytest.mark.parametrize("listens_on", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::"])
def test_the_loopback_is_called_by_its_names(listens_on, host):
    assert answers(listens_on, host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost", "xmodels.example.org"]
)
@pytest.mark.parametrize("listens_on", ["127.0.0.1", "0.0.0.0", "::"])
def test_other_names_are_refused(listens_on, host):
    assert answers(listens_on, host) == answers(listens_on, f"{host}:8000") == 421


def test_names_that_were_given_pass_whatever_their_case_and_port():
    assert answers("127.0.0.1", "Models.Example.org:443") == answers("127.0.0.1", "gateway") == 200
    assert answers("127.0.0.1", "gateway", more=()) == 421


def test_an_address_passes_where_the_server_listens_on_it(monkeypatch):
    """As the health checks of Kubernetes and of load balancers ask: by the pod's address."""
    for host in ("10.1.2.3:8000", "[2001:db8::7]:8000"):
        assert answers("0.0.0.0", host) == answers("::", host) == 200
        assert answers("127.0.0.1", host) == 421
    assert answers("10.1.2.3", "10.1.2.3") == 200
    assert answers("10.1.2.3", "10.1.2.4") == 421
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port: [(2, 1, 6, "", ("10.1.2.3", 0))])
    assert answers("gpu-7.lan", "gpu-7.lan:8000") == answers("gpu-7.lan", "10.1.2.3") == 200


@pytest.mark.parametrize(
    "host", ["", "a b", "a/b", "user@localhost", "localhost:x", "[::1", "::1", "exämple", "a\\b", [], ["localhost", "evil.example"]]
)
def test_what_is_no_host_is_a_bad_request(host):
    assert answers("127.0.0.1", host) == 400


def test_http_1_0_need_not_tell_a_host():
    assert answers("127.0.0.1", [], version="1.0") == 200
    assert answers("127.0.0.1", "evil.example", version="1.0") == 421


@pytest.mark.parametrize("name", ["http://models.example.org", "models.example.org:80", "*", "*.example.org", "", "a b"])
def test_what_is_no_name_is_refused_in_one_line(name):
    with pytest.raises(ServingError, match="no name of a host; give it without scheme and port"):
        hosts_of("127.0.0.1", [name])


def asked(request):
    """All that a server of one request answers. It has no model: whoever gets as far as that fails."""

    async def run():
        endpoint = Endpoint(None, Metrics("a"), ReplicaLimits(), "secret", lambda: ReplicaStatus({}, {}, []), hosts_of("127.0.0.1"))
        sock = listener.bind("127.0.0.1", 0)
        server = listener.server(endpoint, timeout_s=1, held=endpoint.held)
        running = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(request)
        try:
            return await asyncio.wait_for(reader.read(), 30)
        finally:
            server.should_exit = True
            await running

    return asyncio.run(run())


@pytest.mark.parametrize("line", ["GET /healthz", "GET /version", "POST /predict", "GET /none"])
def test_a_page_of_another_name_gets_one_line_before_any_work_and_before_the_token(line):
    body = b"" if line.startswith("GET") else b"content-length: 5\r\n"
    head, _, answer = asked(f"{line} HTTP/1.1\r\nHost: evil.example:8000\r\n".encode() + body + b"\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 421")
    said = "this server is not called evil.example; start it with --allow-host evil.example if that is one of its names."
    assert json.loads(answer) == {"error": said}


def test_the_server_s_own_name_is_answered():
    assert asked(b"GET /healthz HTTP/1.1\r\nHost: localhost:8000\r\nConnection: close\r\n\r\n").endswith(b'{"status": "alive"}')
    assert asked(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 401")
