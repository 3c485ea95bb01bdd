"""What the libraries say when a process, a worker or the memory gives out, in one line of our own."""

from __future__ import annotations

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
