#!/usr/bin/env python
"""`helm-megatron build-data-cache` as a script; `--help` lists its flags."""

from helm_megatron.commands.build_data_cache import main

if __name__ == "__main__":
    main()
