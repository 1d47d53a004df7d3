#!/usr/bin/env python
"""`helm-megatron merge` as a script; `--help` lists its flags."""

from helm_megatron.commands.merge_datasets import main

if __name__ == "__main__":
    main()
