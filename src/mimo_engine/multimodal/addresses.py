"""Which network addresses a media URL may lead to.

A server that fetches what strangers name is a way into its own network. So the decision is made on
the addresses that a connection would go to, never on how a URL spells its host. The tables follow
IANA's registries of special-purpose addresses, and not `ipaddress.is_global`, whose answer differs
between versions of Python.
"""

from __future__ import annotations

import ipaddress
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = ["is_public", "literal_address", "system_addresses"]

_SPECIAL_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, where clouds keep their metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID and others
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which holds any IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether a numeric address is reachable from, and meant for, the whole internet.

    An IPv6 address that carries an IPv4 address to a translator (IPv4-mapped, NAT64) is as public
    as that one.
    """
    return _is_public(ipaddress.ip_address(address))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    carried = address.ipv4_mapped
    if address in _NAT64:
        carried = IPv4Address(int(address) & 0xFFFF_FFFF)
    if carried is not None:
        return _is_public(carried)
    return address in _GLOBAL_UNICAST_V6 and not any(address in net for net in _SPECIAL_V6)


def literal_address(host: str) -> str | None:
    """The address that `host` spells, in its usual form; None when it is a name to look up.

    IPv4 addresses have many spellings: 127.1, 0x7f.1, 0177.0.0.1 and 2130706433 are all loopback.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def system_addresses(host: str) -> list[str]:
    """Addresses of a host name, best first, as the system's resolver has them. OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    # The first field of an IPv4 and of an IPv6 socket address is the numeric host.
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
