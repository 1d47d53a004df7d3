"""The training program: `pretrain_helm.py` and `helm-megatron pretrain`."""


def main() -> None:
    """Train as the command line says."""
    from helm_megatron import megatron_patches

    megatron_patches.apply()  # before anything imports megatron

    from helm_megatron import pretrain

    pretrain.main()
