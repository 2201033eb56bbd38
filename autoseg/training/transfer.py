"""Weights of a trained network as the start of another one: what fits is loaded, the first and last layers adapted.

Which tensors depend on the channels of the image and on the classes is not written down for any architecture: the
network is built again, without memory, for more channels and for more classes, and the axes that grow are those.

*Classes*: rows are copied where both name the label (nnU-Net's ``-pretrained_weights`` always leaves its last layers
fresh); background is a label of that name. *Channels*: copied where both name the channel (nnU-Net refuses another
number of them). A channel that only the new network has starts from the sum of all trained channels over the number
of new ones: the usual inflation, which answers to equal channels as the trained layer did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn

from autoseg.errors import SettingError
from autoseg.log import table
from autoseg.nets import build_network
from autoseg.schema.dataset import Labels
from autoseg.schema.plan import Configuration, Plan

INPUT, OUTPUT = "channels", "labels"
HOWS = ("loaded", "adapted", "fresh", "unused")
# Below this share of loaded values, in tensors that depend on neither channels nor labels, it is another network.
LEAST_SHARE = 0.5
_SHOWN = 3
# So many channels or labels more; unlike any width, because layers may depend on whether two widths are equal.
_MORE = 101


@dataclass(frozen=True, kw_only=True)
class Source:
    """Trained weights, and the names of the network's input channels and output classes in their order.

    ``place`` is what a person calls it; ``plan`` the file that plans such a network.
    """

    place: str
    plan: str
    weights: Mapping[str, Tensor]
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    regions: bool


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the weights of a fold begin. ``origin`` tells trainings apart; ``read`` is called only when one begins.

    ``freeze`` are names of parts, or patterns of names of parameters, that training leaves as they are. ``record`` is
    ``describe`` of the transfer and where it came from, for the files of the model.
    """

    origin: str
    freeze: tuple[str, ...]
    read: Callable[[], Source]
    record: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor: ``how`` is one of ``HOWS``, ``note`` says what was done or why it could not be loaded."""

    name: str
    shape: tuple[int, ...]
    how: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What of a source goes where; ``share`` of the values that neither channels nor labels decide is loaded."""

    entries: tuple[Entry, ...]
    share: float

    def of(self, how: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.how == how)


@dataclass(frozen=True)
class _Match:
    """``pairs`` (new index, trained index); ``spread`` are new channels without a partner."""

    pairs: tuple[tuple[int, int], ...]
    spread: tuple[int, ...]
    note: str

    def is_identity(self, old: int, new: int) -> bool:
        return old == new and self.pairs == tuple((index, index) for index in range(new))


def channel_names(plan: Plan, configuration: Configuration) -> tuple[str, ...]:
    """Names of the network's input channels; the second stage of a cascade also sees one per foreground label."""
    stage = plan.labels.names if configuration.previous_stage is not None else ()
    return (*plan.channels, *(f"previous stage: {name}" for name in stage))


def label_names(labels: Labels) -> tuple[str, ...]:
    """Names of the network's heads."""
    if labels.has_regions:
        return labels.names
    names = ["background"] * labels.num_heads
    for label in labels.foreground:
        names[labels.internal(label)[0]] = label.name
    return tuple(names)


def begin(network: nn.Module, start: Start, *, plan: Plan, configuration: Configuration, resumed: bool) -> None:
    """Give a fresh network its starting weights and freeze what is to be frozen, in place.

    Args:
        resumed: a checkpoint follows, so that nothing is loaded.

    Raises:
        SettingError: the source is of another network, or nothing has a name that is to be frozen.
    """
    if not resumed:
        apply_transfer(network, start.read(), plan=plan, configuration=configuration)
    freeze_parameters(network, start.freeze)


def compare(source: Source, *, plan: Plan, configuration: Configuration) -> Transfer:
    """What ``apply_transfer`` would do, without touching any weight; checked.

    Raises:
        SettingError: less than half of what should fit does; names the command that plans a fitting network.
    """
    network = _blueprint(plan, configuration, channels=0, labels=0)
    transfer, _ = _transfer(network.state_dict(), source, plan, configuration)
    if transfer.share < LEAST_SHARE:
        raise SettingError(
            f"the network planned for {plan.dataset} ({configuration.architecture.label}, {configuration.name}) is not "
            f"like that of {source.place}: only {transfer.share:.0%} of its weights fit",
            hint=f"plan it alike: autoseg_move_plan -s {source.plan} -t {plan.dataset} --force, then train again",
        )
    return transfer


def apply_transfer(network: nn.Module, source: Source, *, plan: Plan, configuration: Configuration) -> Transfer:
    """Load and adapt weights in place; errors as ``compare``."""
    compare(source, plan=plan, configuration=configuration)
    fresh = network.state_dict()
    transfer, weights = _transfer(fresh, source, plan, configuration)
    with torch.no_grad():
        for name, values in weights.items():
            fresh[name].copy_(values)
    return transfer


def transfer_text(transfer: Transfer) -> str:
    """How many tensors and values were loaded, adapted, left fresh, and not used, and the names of the latter three."""
    rows = []
    for how in HOWS:
        entries = transfer.of(how)
        values = sum(prod(entry.shape) for entry in entries)
        names = "" if how == "loaded" else ", ".join(entry.name for entry in entries[:_SHOWN])
        more = f" and {len(entries) - _SHOWN} more" if names and len(entries) > _SHOWN else ""
        rows.append([how, str(len(entries)), f"{values:,}", names + more])
    notes = dict.fromkeys(entry.note for how in ("adapted", "fresh") for entry in transfer.of(how))
    return "\n".join([table(rows, header=["", "tensors", "values", "which"]), *notes])


def freeze_parameters(network: nn.Module, patterns: Sequence[str]) -> int:
    """Exclude parameters from training and return how many values that are.

    Args:
        patterns: ``encoder`` is everything below the part of that name, ``encoder.0.*`` what the pattern fits.

    Raises:
        SettingError: a pattern fits nothing, or nothing is left to train.
    """
    named = dict(network.named_parameters())
    unknown = [pattern for pattern in patterns if not any(_fits(name, pattern) for name in named)]
    if unknown:
        parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in named))
        raise SettingError(
            f"--freeze {' '.join(unknown)}: no parameter of the network has such a name",
            hint=f"its parts are {parts}; a pattern such as 'encoder.0.*' is possible too",
        )
    frozen = 0
    for name, parameter in named.items():
        if any(_fits(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    if not any(parameter.requires_grad for parameter in named.values()):
        raise SettingError("--freeze leaves nothing to train", hint="freeze less")
    return frozen


def _fits(name: str, pattern: str) -> bool:
    return name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _blueprint(plan: Plan, configuration: Configuration, *, channels: int, labels: int) -> nn.Module:
    """The planned network, with some channels and labels more, without memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return build_network(
            configuration.architecture,
            configuration.topology,
            ndim=configuration.ndim,
            in_channels=len(channel_names(plan, configuration)) + channels,
            num_heads=plan.labels.num_heads + labels,
            patch_size=configuration.patch_size,
        )


def _growing_axes(plan: Plan, configuration: Configuration) -> dict[str, dict[int, str]]:
    """Tensor -> axis -> which names its entries have, for every tensor that depends on channels or labels."""
    shapes = {
        kind: {
            name: tuple(tensor.shape)
            for name, tensor in _blueprint(plan, configuration, **{"channels": 0, "labels": 0, **more})
            .state_dict()
            .items()
        }
        for kind, more in (("", {}), (INPUT, {"channels": _MORE}), (OUTPUT, {"labels": _MORE}))
    }
    found: dict[str, dict[int, str]] = {}
    for kind in (INPUT, OUTPUT):
        for name, before in shapes[""].items():
            after = shapes[kind].get(name, before)
            for axis, (old, new) in enumerate(zip(before, after, strict=True)):
                if new != old:
                    found.setdefault(name, {})[axis] = kind
    return found


def _transfer(
    fresh: Mapping[str, Tensor], source: Source, plan: Plan, configuration: Configuration
) -> tuple[Transfer, dict[str, Tensor]]:
    """The entries of every tensor, and the values of those that are loaded or adapted."""
    growing = _growing_axes(plan, configuration)
    channels, labels = channel_names(plan, configuration), label_names(plan.labels)
    matches = {INPUT: _match_channels(source.channels, channels), OUTPUT: _match_labels(source, labels, plan.labels)}
    sizes = {INPUT: (len(source.channels), len(channels)), OUTPUT: (len(source.labels), len(labels))}
    entries, weights = [], {}
    fitting = total = 0
    for name, tensor in fresh.items():
        axes = growing.get(name, {})
        trained = source.weights.get(name)
        note = _misfit(tensor, trained, axes, sizes)
        if not axes:
            total += tensor.numel()
            fitting += tensor.numel() * (not note)
        if trained is None or note:
            entries.append(Entry(name=name, shape=tuple(tensor.shape), how="fresh", note=note))
            continue
        changed = [kind for kind in axes.values() if not matches[kind].is_identity(*sizes[kind])]
        how, note = "loaded", ""
        if any(kind == OUTPUT and not matches[OUTPUT].pairs for kind in changed):
            entries.append(Entry(name=name, shape=tuple(tensor.shape), how="fresh", note=matches[OUTPUT].note))
            continue
        if changed:
            how, note = "adapted", "; ".join(dict.fromkeys(matches[kind].note for kind in changed))
        entries.append(Entry(name=name, shape=tuple(tensor.shape), how=how, note=note))
        if not tensor.is_meta:
            weights[name] = _adapted(tensor, trained, axes, matches) if changed else trained
    unused = [name for name in source.weights if name not in fresh]
    entries += [Entry(name=name, shape=tuple(source.weights[name].shape), how="unused") for name in unused]
    return Transfer(entries=tuple(entries), share=fitting / total if total else 1.0), weights


def _misfit(
    tensor: Tensor, trained: Tensor | None, axes: Mapping[int, str], sizes: Mapping[str, tuple[int, int]]
) -> str:
    """Why a trained tensor cannot become this one, "" if it can."""
    if trained is None:
        return "the source has no tensor of this name"
    wanted = [sizes[axes[axis]][0] if axis in axes else length for axis, length in enumerate(tensor.shape)]
    if list(trained.shape) != wanted:
        return "the source's tensor has another shape"
    # An axis that holds every channel or label several times cannot be taken apart.
    odd = [axis for axis, kind in axes.items() if tensor.shape[axis] != sizes[kind][1]]
    return "its entries are not one per channel or label" if odd else ""


def _adapted(fresh: Tensor, trained: Tensor, axes: Mapping[int, str], matches: Mapping[str, _Match]) -> Tensor:
    """The trained tensor with its named axes in the new order; what has no partner keeps its fresh values."""
    values = trained.to(device=fresh.device, dtype=fresh.dtype)
    filled: list[list[int]] = [list(range(length)) for length in fresh.shape]
    for axis, kind in axes.items():
        match = matches[kind]
        new = [index for index, _ in match.pairs]
        picked = values.index_select(axis, torch.tensor([index for _, index in match.pairs], dtype=torch.long))
        # The second axis of a convolution is its input; elsewhere a mixture of channels has no meaning.
        if kind == INPUT and axis == 1 and match.spread:
            mixed = values.sum(dim=axis, keepdim=True) / fresh.shape[axis]
            picked = torch.cat([picked, mixed.expand(_with(mixed.shape, axis, len(match.spread)))], dim=axis)
            new += match.spread
        values, filled[axis] = picked, new
    result = fresh.clone()
    places = torch.meshgrid(*(torch.tensor(indices, dtype=torch.long) for indices in filled), indexing="ij")
    result[places] = values
    return result


def _with(shape: Sequence[int], axis: int, length: int) -> list[int]:
    return [length if index == axis else size for index, size in enumerate(shape)]


def _match(old: Sequence[str], new: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of equal names, whatever their case; the first of several comes first."""
    left = {index: name.strip().casefold() for index, name in enumerate(old)}
    pairs = []
    for place, name in enumerate(new):
        index = next((index for index, known in left.items() if known == name.strip().casefold()), None)
        if index is not None:
            del left[index]
            pairs.append((place, index))
    return tuple(pairs)


def _match_channels(old: Sequence[str], new: Sequence[str]) -> _Match:
    pairs = _match(old, new)
    if not pairs and len(old) == len(new):
        renamed = ", ".join(f"{after} as {before}" for before, after in zip(old, new, strict=True))
        return _Match(tuple((index, index) for index in range(len(new))), (), f"channels by position: {renamed}")
    known = {place for place, _ in pairs}
    spread = tuple(place for place in range(len(new)) if place not in known)
    parts = [f"by name: {', '.join(new[place] for place, _ in pairs)}"] if pairs else []
    parts += [f"from all trained channels: {', '.join(new[place] for place in spread)}"] if spread else []
    return _Match(pairs, spread, f"channels {'; '.join(parts)}")


def _match_labels(source: Source, new: Sequence[str], labels: Labels) -> _Match:
    if source.regions != labels.has_regions:
        kinds = ("regions, which overlap", "labels, which exclude each other")
        before, after = kinds if source.regions else kinds[::-1]
        return _Match((), (), f"labels fresh: the source has {before}, this dataset {after}")
    pairs = _match(source.labels, new)
    known = {place for place, _ in pairs}
    parts = [f"by name: {', '.join(new[place] for place, _ in pairs)}"] if pairs else []
    left = [name for place, name in enumerate(new) if place not in known]
    parts += [f"fresh: {', '.join(left)}"] if left else []
    return _Match(pairs, (), f"labels {'; '.join(parts)}")


def check_freeze(plan: Plan, configuration: Configuration, patterns: Sequence[str]) -> int:
    """How many values ``freeze_parameters`` would freeze; errors as there."""
    return freeze_parameters(_blueprint(plan, configuration, channels=0, labels=0), patterns)


def describe(transfer: Transfer) -> dict[str, object]:
    """The whole table as JSON values."""
    return {how: {entry.name: entry.note or "as it was" for entry in transfer.of(how)} for how in HOWS}


__all__ = [
    "Entry",
    "Source",
    "Start",
    "Transfer",
    "apply_transfer",
    "begin",
    "channel_names",
    "check_freeze",
    "compare",
    "describe",
    "freeze_parameters",
    "label_names",
    "transfer_text",
]
