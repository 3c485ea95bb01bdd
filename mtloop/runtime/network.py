"""How the processes of several machines find one another. Must not know data, models or the run folder."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil


def choose_interface() -> None:
    """Have gloo use the network interface that leads to the first machine, unless GLOO_SOCKET_IFNAME says otherwise.

    Gloo itself takes the address of the machine's own name, which /etc/hosts of many systems (Debian's 127.0.1.1) puts
    on loopback: the processes of two machines would each wait for the other on themselves.
    """
    first_machine = os.environ.get("MASTER_ADDR", "")
    if "GLOO_SOCKET_IFNAME" in os.environ or not first_machine:
        return
    own = _own_address(first_machine)
    if own is None or ipaddress.ip_address(own).is_loopback:  # one machine, or a name that leads nowhere else
        return
    for name, addresses in psutil.net_if_addrs().items():
        # Link-local IPv6 addresses carry the interface's name after a %.
        if any(address.address.partition("%")[0] == own for address in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def _own_address(peer: str) -> str | None:
    """Return the address that this machine speaks to `peer` from; None where it cannot tell."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: looks up the route and sends nothing
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:  # an unknown name or no route: the launcher says so itself
        return None


def could_not_meet() -> str:
    """Say in one line that the processes did not find one another, and what to look at."""
    where = f"{os.environ.get('MASTER_ADDR', '?')} port {os.environ.get('MASTER_PORT', '?')}"
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "that of the machine's own name")
    return (
        f"the processes of the run did not meet at {where}; does --main_process_ip name the "
        "first machine, and is every port open between the machines? On CPUs they speak over the network interface "
        f"{interface}: GLOO_SOCKET_IFNAME chooses another"
    )
