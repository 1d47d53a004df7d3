#!/usr/bin/env python
"""`helm-megatron convert` as a script; `--help` lists its flags."""

from helm_megatron.commands.convert import main

if __name__ == "__main__":
    main()
