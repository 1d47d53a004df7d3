#!/usr/bin/env python
"""`helm-megatron preprocess` as a script; `--help` lists its flags."""

from helm_megatron.commands.preprocess_data import main

if __name__ == "__main__":
    main()
