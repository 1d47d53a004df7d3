"""No process that a rank starts for its checkpoints outlives the rank.

Upstream: Megatron 0.19 keeps the queue of what its writers report in a process of its own, with
all that the training program imports (400 MB), which stays for good when the rank is killed; so
does the worker of --use-persistent-ckpt-worker.
Here: a thread of the rank serves the queue, and the worker ends when its parent does.
Goes: when upstream's processes end with their parent.
"""

import multiprocessing
import os
import threading
from multiprocessing.managers import SyncManager
from typing import Any

_ASYNC = "megatron.core.dist_checkpointing.strategies"
UPSTREAM = {
    f"{_ASYNC}.filesystem_async.get_write_results_queue": "339b9935a81d",
    f"{_ASYNC}.async_utils.PersistentAsyncCaller.async_loop": "79e2ad6d3941",
}

_queue: Any = None
_upstream_loop: Any = None


def results_queue(mp_mode: str = "spawn") -> Any:
    """The queue, as a proxy that every process can be sent; made at the first call.

    `mp_mode` is how Megatron would start the queue's process, of which there is none.
    """
    global _queue
    if _queue is None:
        # A port of this machine, as a socket among the files would stay when the rank is killed.
        server = SyncManager(address=("127.0.0.1", 0)).get_server()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = SyncManager(address=server.address)
        client.connect()
        _queue = client.Queue()
    return _queue


def async_loop(*args: Any) -> None:
    """Megatron's loop of the persistent worker, in a process that ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from helm_megatron import megatron_patches

    megatron_patches.apply()
    _upstream_loop(*args)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def apply() -> None:
    """Replace the queue and the worker's loop."""
    global _upstream_loop
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

    filesystem_async.get_write_results_queue = results_queue
    _upstream_loop = PersistentAsyncCaller.async_loop
    PersistentAsyncCaller.async_loop = staticmethod(async_loop)
