#!/usr/bin/env python
"""`helm-megatron plot` as a script; `--help` lists its flags."""

from helm_megatron.commands.plot_losses import main

if __name__ == "__main__":
    main()
