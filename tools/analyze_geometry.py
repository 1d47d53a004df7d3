#!/usr/bin/env python
"""`helm-megatron analyze` as a script; `--help` lists its flags."""

from helm_megatron.commands.analyze_geometry import main

if __name__ == "__main__":
    main()
