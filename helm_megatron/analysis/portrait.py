"""Everything that `helm-megatron analyze` tells of a model, and its pictures beside a twin's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from helm_megatron.analysis import figures, ricci, states, tokens
from helm_megatron.analysis.activations import Activations, observe
from helm_megatron.analysis.words import Words, points_of

Panel = Callable[["Portrait"], figures.Draw | None]

# Edges of the graph of tokens whose Ricci curvature is computed, at some milliseconds each.
EDGES = 1000


@dataclass(frozen=True)
class Options:
    """What is looked at in every model.

    Attributes:
        samples: tokens whose distances to each other are looked at.
        seed: of the choice of these.
        text: what the model reads, up to its number of positions.
        counts: how often each of the first tokens occurs in a dataset, if one was given.
        words: for the disk, if there are any.
        groups: words by group, generic to specific, by the name of their list.
    """

    samples: int
    seed: int
    text: str
    counts: Tensor | None
    words: Words | None
    groups: dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Portrait:
    """What there is to see of a model.

    Attributes:
        c: of its embedding; 1 to look at a Euclidean twin's.
        radius: distance of each token to the origin.
        counts: how often each occurs in a dataset, if one was given.
        delta: relative hyperbolicity of some tokens, and of these with their coordinates shuffled.
        ricci: curvatures of edges between neighbours among them.
        places: words in the Poincare disk, if there are any.
        norms: of words by group, for each file of groups.
        seen: what a text does in the model.
    """

    c: float
    radius: Tensor
    counts: Tensor | None
    delta: tuple[float, float]
    chosen: int
    ricci: Tensor
    words: Words | None
    places: Tensor | None
    norms: dict[str, states.WordNorms]
    seen: Activations


def portray(model: Any, tokenizer: Any, options: Options) -> Portrait:
    """Look at an exported model (`HelmForCausalLM`), which has all tokens that were counted."""
    lorentz = model.config.geometry == "lorentz"
    c = model.config.embedding_curvature if lorentz else 1.0
    table = model.get_input_embeddings().weight.detach().float()
    generator = torch.Generator().manual_seed(options.seed)
    chosen = table[tokens.sample(len(table), generator, options.samples)]
    metric = c if lorentz else None
    apart = tokens.distances(chosen, metric)
    mixed = tokens.distances(tokens.shuffled(chosen, generator), metric)
    graph = ricci.neighbour_graph(apart)
    words, counts = options.words, options.counts
    places = None if words is None else tokens.disk(points_of(words, tokenizer, table, c), c)
    radius = tokens.radii(table, c)
    if counts is not None:
        counts = torch.nn.functional.pad(counts, (0, len(radius) - len(counts)))
    ids = torch.tensor([tokenizer(options.text).input_ids[: model.config.max_position_embeddings]])
    return Portrait(
        c=c,
        radius=radius,
        counts=counts,
        delta=(tokens.relative_hyperbolicity(apart), tokens.relative_hyperbolicity(mixed)),
        chosen=len(chosen),
        ricci=ricci.edge_curvatures(graph, EDGES, generator),
        words=words,
        places=places,
        norms={
            n: states.word_norms(model, tokenizer, found) for n, found in options.groups.items()
        },
        seen=observe(model, ids),
    )


def numbers(model: Portrait) -> dict[str, str]:
    """What a table has of a model, by name."""
    delta = f"2 delta / diameter of {model.chosen} tokens (0: a tree)"
    result = {
        "embedding curvature c": f"{model.c:g}",
        "median distance of a token to the origin": f"{model.radius.median():.4g}",
        "largest": f"{model.radius.max():.4g}",
        delta: f"{model.delta[0]:.3f}",
        f"{delta}, coordinates shuffled": f"{model.delta[1]:.3f}",
    }
    if len(model.ricci):
        below = (model.ricci < 0).double().mean()
        result[f"Ollivier-Ricci curvature of {model.chosen} tokens: mean, part below 0"] = (
            f"{model.ricci.mean():.3f} {below:.2f}"
        )
    for name, found in model.norms.items():
        result |= _norms(name, found)
    seen = model.seen
    for number, rank in enumerate(seen.ranks):
        result[f"layer {number}: effective rank of the states"] = f"{rank:.1f}"
    for number, times in enumerate(seen.times):
        result[f"layer {number}: median and largest time"] = (
            f"{times.median():.4g} {times.max():.4g}"
        )
    for number, load in seen.loads.items():
        result[f"layer {number}: load of the experts"] = " ".join(f"{x:.2f}" for x in load)
    for number, values in seen.curvatures.items():
        result[f"layer {number}: c of the experts"] = " ".join(f"{x:.3g}" for x in values)
    return result


def _norms(name: str, found: states.WordNorms) -> dict[str, str]:
    """Norms of a file's groups, and whether they grow from group to group."""
    result = {}
    for group, label in enumerate(found.names):
        (layer, _), (normed, _) = (found.mean(x, group) for x in (found.layer, found.normed))
        result[f"words, {name}, {label}: norm in the last layer, after the final norm"] = (
            f"{layer:.3f} {normed:.3f}"
        )
    order = stats.spearmanr(found.group.numpy(), found.layer.numpy())
    result[f"words, {name}: rank correlation of norm in the last layer and group, p"] = (
        f"{order.statistic:+.2f} {order.pvalue:.2g}"
    )
    return result


def draw(models: Mapping[str, Portrait], folder: Path, options: Options) -> dict[str, Path]:
    """Write the pictures into a folder; returns them by caption."""
    layers = max(len(found.seen.loads) for found in models.values())
    table: dict[str, Any] = {"size": (7, 1.5 + 0.4 * layers), "share": False}
    kinds: list[tuple[str, str, Panel, dict[str, Any]]] = [
        ("radii", "Distance of tokens to the origin", _radii, {}),
        ("radius_by_frequency", "Distance to the origin against frequency", _by_frequency, {}),
        ("ricci", "Curvature of the graph of nearest tokens", _ricci, {}),
        ("disk", "Words in the Poincare disk", _disk, {"size": (8, 8), "share": False}),
        *(
            (f"norms_{n}", f"Norms of words, {n}", partial(_norms_of, n), {})
            for n in options.groups
        ),
        ("ranks", "Effective rank of the states by layer", _ranks, {}),
        ("times", "Time coordinates by layer", _times, {}),
        ("curvatures", "Curvature c of every expert", _curvatures, table),
        ("expert_load", "Load of every expert", _loads, table),
    ]
    pictures = {}
    for name, caption, panel, how in kinds:
        drawn = {model: panel(found) for model, found in models.items()}
        draws = {model: draw for model, draw in drawn.items() if draw is not None}
        if draws:
            pictures[caption] = figures.save(folder / f"{name}.png", draws, **how)
    return pictures


def _radii(model: Portrait) -> figures.Draw:
    what = "distance to the origin"
    return partial(figures.histogram, values=model.radius, what=what, of="tokens")


def _by_frequency(model: Portrait) -> figures.Draw | None:
    if model.counts is None:
        return None
    return partial(figures.radius_by_frequency, radius=model.radius, counts=model.counts)


def _ricci(model: Portrait) -> figures.Draw | None:
    if not len(model.ricci):
        return None
    what = "Ollivier-Ricci curvature"
    return partial(figures.histogram, values=model.ricci, what=what, of="edges")


def _disk(model: Portrait) -> figures.Draw | None:
    if model.words is None or model.places is None:
        return None
    words = model.words
    return partial(figures.poincare_disk, places=model.places, words=words.names, edges=words.edges)


def _norms_of(name: str, model: Portrait) -> figures.Draw:
    return partial(figures.word_norms, found=model.norms[name])


def _ranks(model: Portrait) -> figures.Draw:
    return partial(figures.ranks_by_layer, ranks=model.seen.ranks)


def _times(model: Portrait) -> figures.Draw | None:
    times = model.seen.times
    return partial(figures.times_by_layer, times=times) if times else None


def _curvatures(model: Portrait) -> figures.Draw | None:
    found = model.seen.curvatures
    return partial(figures.experts, values=found, label="c") if found else None


def _loads(model: Portrait) -> figures.Draw | None:
    found = model.seen.loads
    return partial(figures.experts, values=found, label="share of the choices") if found else None
