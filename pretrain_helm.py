"""Pretrain a HELM model, or its Euclidean twin, with Megatron's own training loop.

    torchrun --nproc_per_node 8 pretrain_helm.py --swiglu --normalization RMSNorm ...

The flags are Megatron's; `--help` lists HELM's own under "helm" and "mice".
"""

if __name__ == "__main__":  # a process that this one starts imports this file, but needs none of it
    from helm_megatron.train import main

    main()
