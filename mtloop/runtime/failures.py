"""Explain in one line what libraries raise when a process, a worker, the memory or the network fails."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil
import torch

from mtloop.errors import ProcessFailed

# Of gloo and NCCL: no type of its own tells these errors from other RuntimeErrors.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "remote process has terminated",
    "NCCL Error",
    "ncclRemoteError",
    "ncclSystemError",
    "Socket Timeout",
    "Timed out waiting",
    "timed out",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def explain(error: BaseException) -> ProcessFailed | None:
    """Turn an error that one process alone may meet into one line; None for one that is not known.

    Returns:
        What the process should report before it ends; its status is 1.
    """
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return ProcessFailed(
            "out of memory; the same command goes on from the newest checkpoint, in training with half of "
            "--max_tokens_per_micro_batch; in an evaluation lower --eval_max_tokens: results are the same"
        )
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return ProcessFailed(f"--deterministic: {text.partition(',')[0][:120]}; leave it out")
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return ProcessFailed(
            f"a loader worker died ({text[:120]}); out of memory? Lower --dataloader_num_workers; the same command "
            "goes on from the newest checkpoint"
        )
    is_distributed = isinstance(error, RuntimeError) and torch.distributed.is_available()
    if is_distributed and any(words in text for words in LOST_PEER):
        what = "did not answer within --process_timeout" if "imed out" in text or "Timeout" in text else "ended"
        return ProcessFailed(
            f"another process of the run {what}; the same command goes on from the newest checkpoint", is_lost_peer=True
        )
    return None


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
