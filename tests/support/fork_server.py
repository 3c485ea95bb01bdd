"""A Python that starts in a twentieth of a second: its programs are forked from a process that has imported them.

Importing torch, transformers and datasets takes five seconds of CPU. One server for each environment imports them once
and computes nothing; every program is a fork of it, with the arguments, environment, folder, streams and ignored
signals of the process that asked. `install()` writes the executable that asks: it passes signals on, ends as the
program ends, and takes the program with it when it is killed. What it cannot start so, it starts as the real Python.

Not for tests of the process itself: its parent, its group, its network namespace, a launcher that dies.
"""

import atexit
import contextlib
import fcntl
import gc
import hashlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NoReturn

# Read when a module is imported, or when Python starts: each combination has a server of its own.
READ_AT_IMPORT = (
    "HF_",
    "TRANSFORMERS_",
    "DATASETS_",
    "TOKENIZERS_",
    "PYTHON",
    "TORCH_",
    "PJRT_",
    "LC_",
    "LANG",
    "GOMP_",
)
READ_LATER = ("HF_TOKEN", "TORCHELASTIC_", "TORCH_NCCL")
# It ends with its parent, and the parent of a fork is the server.
NEVER_FORKED = ["-m", "mtloop.hub.upload"]
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# What train.py, its commands and the launcher import, whichever way they go.
PRELOADED = [
    "torch",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.utils.data",
    "transformers",
    "transformers.generation",
    "transformers.hf_argparser",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.marian.modeling_marian",
    "transformers.models.marian.tokenization_marian",
    "transformers.optimization",
    "datasets",
    "datasets.io.generator",
    "datasets.packaged_modules.generator.generator",
    "datasets.packaged_modules.json.json",
    "accelerate",
    "accelerate.commands.accelerate_cli",
    "accelerate.commands.launch",
    "filelock",
    "huggingface_hub.hf_api",
    "langcodes",
    "language_data",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pandas",
    "psutil",
    "pyarrow.compute",
    "sacrebleu.metrics",
    "safetensors.torch",
    "sentencepiece",
    "tqdm",
    "yaml",
]


# The one who asks


def install(folder: Path) -> Path:
    """Write the executable into a folder; servers live as long as the folder and this process; return its path."""
    folder.mkdir(exist_ok=True)
    (folder / "owner").write_text(str(os.getpid()))
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{Path(__file__).resolve()}" ask "{folder}" "$@"\n')
    path.chmod(0o755)
    return path


def ask(folder: Path, words: list[str]) -> int:
    """Have a server run `words` as Python's command line; return the exit status, or die of the program's signal."""
    is_unbuffered = words[:1] == ["-u"]
    words = words[is_unbuffered:]
    is_option = words[:1] and words[0].startswith("-") and words[0] not in ("-m", "-c")
    if not words or is_option or words[:2] == NEVER_FORKED:
        os.execv(sys.executable, [sys.executable, *["-u"] * is_unbuffered, *words])
    ignored = [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    request = {
        "words": words,
        "cwd": os.getcwd(),
        "env": dict(os.environ),
        "ignored": ignored,
        "is_unbuffered": is_unbuffered,
        "executable": str(folder / "python"),
    }
    connection = _connect(folder)
    for number in set(PASSED_ON) - set(ignored):
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    content = json.dumps(request).encode()
    socket.send_fds(connection, [struct.pack("!I", len(content))], [0, 1, 2])
    connection.sendall(content)
    answer = b""
    while len(answer) < 4 and (part := connection.recv(4 - len(answer))):
        answer += part
    if len(answer) < 4:
        return 70  # the server is gone
    (status,) = struct.unpack("!i", answer)
    if status < 0:
        if -status in PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _connect(folder: Path) -> socket.socket:
    """Connect to the server of this environment; start it if it is not there."""
    names = sorted(name for name in os.environ if name.startswith(READ_AT_IMPORT) and not name.startswith(READ_LATER))
    key = hashlib.sha256(json.dumps([(name, os.environ[name]) for name in names]).encode()).hexdigest()[:16]
    address = folder / f"{key}.sock"
    with open(folder / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            connection.connect(str(address))
            return connection
        address.unlink(missing_ok=True)
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "serve", str(address)],
            stdin=subprocess.DEVNULL,
            stdout=(folder / f"{key}.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                connection.connect(str(address))
                return connection
            time.sleep(0.02)
    raise SystemExit(f"no server answers at {address}: {(folder / f'{key}.log').read_text()[-2000:]}")


# The server


def serve(address: Path) -> dict:
    """Import what programs need, then fork one for each request, until the folder of the address is gone.

    Returns:
        In every fork: the request, its streams in place.
    """
    import importlib

    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork's collector would touch, and so copy, every page
    waiting = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(64)
    waiting.register(listener, selectors.EVENT_READ)
    programs: dict[int, tuple[socket.socket, int]] = {}  # process id -> who asked, and the process's descriptor
    owner = Path("/proc", (address.parent / "owner").read_text())
    while address.exists() and owner.exists():
        for key, _ in waiting.select(timeout=1.0):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, streams = _read_request(connection)
                pid = os.fork()
                if pid == 0:
                    for other, descriptor in programs.values():
                        other.close()
                        os.close(descriptor)
                    for one in (waiting, listener, connection):
                        one.close()
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                        os.close(stream)
                    return request
                for stream in streams:
                    os.close(stream)
                descriptor = os.pidfd_open(pid)
                programs[pid] = (connection, descriptor)
                waiting.register(connection, selectors.EVENT_READ, ("asked", pid))
                waiting.register(descriptor, selectors.EVENT_READ, ("ended", pid))
                continue
            what, pid = key.data
            if pid not in programs:  # ended in this round
                continue
            connection, descriptor = programs[pid]
            if what == "asked":
                numbers = connection.recv(64)
                for number in numbers or [signal.SIGKILL]:
                    os.kill(pid, number)
                if not numbers:  # who asked was killed
                    waiting.unregister(connection)
            else:
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(OSError):
                    connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))
                waiting.unregister(descriptor)
                with contextlib.suppress(KeyError):
                    waiting.unregister(connection)
                connection.close()
                os.close(descriptor)
                del programs[pid]
    for pid in programs:
        os.kill(pid, signal.SIGKILL)
    sys.exit()


def _read_request(connection: socket.socket) -> tuple[dict, list[int]]:
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    (size,) = struct.unpack("!I", head)
    content = b""
    while len(content) < size:
        content += connection.recv(size - len(content))
    return json.loads(content), streams


def become(request: dict) -> NoReturn:
    """Run the program of a request in this process and end as Python itself would.

    What Python does last is left out: it takes the modules apart, which copies every page that they are on.
    """
    status = 0
    try:
        _run(request)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = 1 if isinstance(end.code, str) else int(end.code or 0)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        status = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        status = 120
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _run(request: dict) -> None:
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # TMPDIR may be another
    for number in PASSED_ON:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else usual)
    is_unbuffered = request["is_unbuffered"] or bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, encoding=sys.stdin.encoding)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        buffer = open(number, "wb", buffering=0 if is_unbuffered else -1, closefd=False)  # noqa: SIM115
        by_line = name == "stderr" or buffer.isatty()
        new = io.TextIOWrapper(
            buffer, encoding=old.encoding, errors=old.errors, line_buffering=by_line, write_through=is_unbuffered
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    sys.executable = request["executable"]  # so that what the program starts is forked, too
    kind, *arguments = request["words"]
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv = [kind, *arguments]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(Path(sys.argv[2]), sys.argv[3:]))
    del sys.path[0]  # this file's folder
    become(serve(Path(sys.argv[2])))
