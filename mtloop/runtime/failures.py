"""Explain in one line what libraries raise when a process, a worker, the memory or the network fails."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil
import torch

from mtloop.errors import ProcessFailed, out_of_resources

# Messages of gloo and NCCL, whose errors have no type of their own.
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
    """Return True if the device or the host had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def explain(error: BaseException) -> ProcessFailed | None:
    """Explain in one line an error that may occur in a single process; None for an unknown one.

    Returns:
        The error to report before the process ends with status 1.
    """
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return ProcessFailed(
            "out of memory. Run the same command: it resumes from the newest checkpoint, in training with half of "
            "--max_tokens_per_micro_batch. In an evaluation lower --eval_max_tokens; the results stay the same."
        )
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return ProcessFailed(f"--deterministic: {text.partition(',')[0][:120]}. Leave out --deterministic.")
    if "DataLoader worker" in text:
        return ProcessFailed(f"--dataloader_num_workers: {_worker_problem(str(error))}")
    is_distributed = isinstance(error, RuntimeError) and torch.distributed.is_available()
    if is_distributed and any(words in text for words in LOST_PEER):
        what = "did not answer within --process_timeout" if "imed out" in text or "Timeout" in text else "ended"
        return ProcessFailed(
            f"another process of the run {what}. Run the same command: it resumes from the newest checkpoint.",
            is_lost_peer=True,
        )
    return out_of_resources(error)


def _worker_problem(text: str) -> str:
    """Describe the failure of a loader process. What one has raised is the last line of the traceback that it sends."""
    reason = " ".join(text.strip().splitlines()[-1 if text.startswith("Caught") else 0].split())[:120]
    remedy = "Give --dataloader_num_workers 0, or a lower number; the same command resumes from the newest checkpoint."
    if "could not be started" in text:
        return (
            f"{reason}. Give --dataloader_num_workers 0, or raise what is short: /dev/shm (--shm-size of a container), "
            "`ulimit -u` or `ulimit -n`; the same command resumes from the newest checkpoint."
        )
    if "did not answer" in text:
        return f"a loader worker did not answer within --process_timeout ({reason}). {remedy}"
    return f"a loader worker died, possibly for lack of memory ({reason}). {remedy}"


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
    """Return the local address of connections to `peer`; None if unknown."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: looks up the route and sends nothing
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:  # an unknown name or no route: the launcher reports it
        return None


def could_not_meet(error: BaseException | None = None) -> str:
    """Describe in one line that the processes could not connect, and what to check."""
    if error is not None and "EADDRINUSE" in str(error):
        return (
            f"--main_process_port: another program uses this port (got {os.environ.get('MASTER_PORT', '?')}). Give "
            "another one, the same on all machines, or end the program; an earlier run may still be ending."
        )
    where = f"{os.environ.get('MASTER_ADDR', '?')} port {os.environ.get('MASTER_PORT', '?')}"
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "that of the machine's own name")
    return (
        f"the processes of the run could not connect at {where}. Check that all of them were started, that "
        "--main_process_ip names the first machine and that all ports are open between the machines. On CPUs they use "
        "the network interface "
        f"{interface}; GLOO_SOCKET_IFNAME selects another."
    )
