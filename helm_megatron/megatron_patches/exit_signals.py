"""`--exit-signal-handler` saves at SIGINT and SIGHUP, too.

Upstream: Megatron 0.19 saves and exits at one signal, SIGTERM (--exit-signal names another); Ctrl-C
and the end of a terminal lose all since the last checkpoint.
Here: SIGINT and SIGHUP do the same; a second SIGINT ends the process at once. Where SIGHUP is
ignored (nohup), it stays so.
Goes: when upstream's handler takes several signals.
"""

import os
import signal
from types import FrameType
from typing import Any

UPSTREAM = {"megatron.training.dist_signal_handler.DistributedSignalHandler": "bd8e98c3239d"}


def _enter(handler: Any) -> Any:
    """Replaces `DistributedSignalHandler.__enter__`."""
    handler._signal_received = False
    handler.released = False
    handler.original_handler = signal.getsignal(handler.sig)

    def received(number: int, frame: FrameType | None) -> None:
        handler._signal_received = True
        again = ""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            again = "; once more: ends at once"
        name = signal.Signals(number).name
        # Not print, which may be what the signal interrupts.
        os.write(2, f"{name}: ends after this step, with a checkpoint if --save{again}\n".encode())

    for number in {handler.sig, signal.SIGINT, signal.SIGHUP}:
        ignored = signal.getsignal(number) is signal.SIG_IGN
        if not (number == signal.SIGHUP and number != handler.sig and ignored):
            signal.signal(number, received)
    return handler


def apply() -> None:
    """Replace the method that installs the handler."""
    from megatron.training.dist_signal_handler import DistributedSignalHandler

    DistributedSignalHandler.__enter__ = _enter
