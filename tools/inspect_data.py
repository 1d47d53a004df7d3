#!/usr/bin/env python
"""`helm-megatron inspect` as a script; `--help` lists its flags."""

from helm_megatron.commands.inspect_data import main

if __name__ == "__main__":
    main()
