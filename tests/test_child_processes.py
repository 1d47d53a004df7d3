"""What a process has started ends with it."""

import signal
import subprocess
import sys

PARENT = """
import subprocess, sys
from helm_megatron.child_processes import ends_with_this

child = subprocess.Popen(["sleep", "100"], stdout=sys.stdout, preexec_fn=ends_with_this())
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_ends_with_a_killed_parent():
    run = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert int(run.stdout.readline())
    run.send_signal(signal.SIGKILL)
    run.wait()
    # It holds the pipe for as long as it lives.
    assert run.communicate(timeout=30)[0] == ""
