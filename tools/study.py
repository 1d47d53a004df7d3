#!/usr/bin/env python
"""`helm-megatron study` as a script; `--help` lists its flags."""

import sys

from helm_megatron.commands.study import main

if __name__ == "__main__":
    sys.exit(main())
