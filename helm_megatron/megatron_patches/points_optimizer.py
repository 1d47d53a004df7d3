"""Megatron's training loop builds an optimizer that trains points on the hyperboloid.

Upstream: Megatron 0.19 has no place where a model names an optimizer for some of its parameters;
`get_megatron_optimizer` builds the Adam that its module imported.
Here: that Adam steps tables of points in its own way, and the training loop calls the function
that deals them out. Models without such tables get what Megatron gives them.
Goes: when an optimizer can be chosen by parameter, with Megatron's masters and sharding around it.
"""

UPSTREAM = {
    "megatron.core.optimizer.Adam": None,
    "megatron.core.optimizer._get_megatron_optimizer_based_on_param_groups": "f4f1d380077e",
    "megatron.core.optimizer.get_megatron_optimizer": "f483132f7f7b",
}


def apply() -> None:
    """Replace the class and the function."""
    from megatron.core import optimizer
    from megatron.training import training

    from helm_megatron.optim.joined import get_optimizer, with_points

    optimizer.Adam = with_points(optimizer.Adam)
    training.get_megatron_optimizer = get_optimizer
