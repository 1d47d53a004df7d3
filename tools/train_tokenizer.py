#!/usr/bin/env python
"""`helm-megatron train-tokenizer` as a script; `--help` lists its flags."""

from helm_megatron.commands.train_tokenizer import main

if __name__ == "__main__":
    main()
