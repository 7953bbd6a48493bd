"""Checks the header Host of requests, against DNS rebinding.

A web page can make its own name resolve to 127.0.0.1, and then read what the server there answers. The header Host still contains the
page's name, so such requests are refused. This attack needs a name, so the addresses of this machine are allowed.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vit_search.errors import ServingError

NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
HEADER = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Hosts:
    """The hosts that a request may name. The port is ignored, because the request may come through a tunnel."""

    names: frozenset[str]
    addresses: frozenset[str]
    """Allowed addresses; loopback addresses are always allowed."""
    all_addresses: bool

    def problem(self, headers: Sequence[tuple[bytes, bytes]], version: str) -> tuple[int, str] | None:
        """Status code and reason if the request must be refused; None if it may be answered.

        Args:
            headers: of the request, with names in lower case.
            version: of HTTP. Version 1.0 has no Host, but no browser uses it.
        """
        values = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if not values and version == "1.0":
            return None
        match = HEADER.fullmatch(values[0].lower()) if len(values) == 1 else None
        if match is None:
            return 400, "give one header Host, as NAME or NAME:PORT."
        host = match["host"]
        if self._allowed(host.removesuffix(".")):
            return None
        return 421, f"this server is not called {host[:253]}; start it with --allow-host {host[:253]} if that is one of its names."

    def _allowed(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host[1:-1] if host.startswith("[") else host)
        except ValueError:
            return host in self.names
        return self.all_addresses or address.is_loopback or str(address) in self.addresses


def hosts_of(listens_on: str, more: Iterable[str] = ()) -> Hosts:
    """The allowed hosts of a server.

    Args:
        listens_on: the name or address that the server binds; 0.0.0.0 and :: mean all addresses of the machine.
        more: names given with --allow-host.
    Raises: ServingError for an invalid name.
    """
    names = {"localhost", *(name.lower().removesuffix(".") for name in more)}
    for name in names:
        if not NAME.fullmatch(name):
            raise ServingError(f"--allow-host {name}: no name of a host; give it without scheme and port, e.g. models.example.org.")
    addresses = {ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in socket.getaddrinfo(listens_on, None)}
    if NAME.fullmatch(listens_on.lower()):
        names.add(listens_on.lower())
    return Hosts(frozenset(names), frozenset(map(str, addresses)), any(address.is_unspecified for address in addresses))
