#!/usr/bin/env python
"""`helm-megatron unigram-entropy` as a script; `--help` lists its flags."""

from helm_megatron.commands.unigram_entropy import main

if __name__ == "__main__":
    main()
