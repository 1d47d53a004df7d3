"""`helm-megatron study` with another program than the training's, which comes first."""

import sys

from helm_megatron import cli
from helm_megatron.study import queue

queue.PROGRAM = (sys.argv[1],)
sys.exit(cli.main(["study", *sys.argv[2:]]))
