#!/usr/bin/env python
"""`helm-megatron generate` as a script; `--help` lists its flags."""

from helm_megatron.commands.generate import main

if __name__ == "__main__":
    main()
