"""`helm-megatron study` with other programs than training and evaluation, which come first."""

import sys

from helm_megatron import cli
from helm_megatron.study import queue

queue.PROGRAM, queue.EVALUATION = (sys.argv[1],), (sys.argv[2],)
sys.exit(cli.main(["study", *sys.argv[3:]]))
