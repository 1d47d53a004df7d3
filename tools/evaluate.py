#!/usr/bin/env python
"""`helm-megatron evaluate` as a script; `--help` lists its flags."""

from helm_megatron.commands.evaluate import main

if __name__ == "__main__":
    main()
