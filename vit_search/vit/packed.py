"""Several trainings of one shape trained as one: a layer of all members is one grouped product, AdamW a few passes over one tensor.

A small model spends its step on starting kernels, not in them; K members that share each start cost little more than one.
Axes: K members, B images of a member's batch, T tokens, P weights of a member, M numbers of a member's dropout masks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vit_search.errors import OutOfMemoryError, PackError
from vit_search.spec.config import EpochResult, ModelConfig
from vit_search.vit import augment, machine
from vit_search.vit.model import Encoder, ViT, decayed, patchify
from vit_search.vit.seeds import derive_seed
from vit_search.vit.splits import Split, StreamedSplit
from vit_search.vit.training import DivergedError, Training, evaluate, lr_at

BETA1, EPS = 0.9, 1e-8
"""Of AdamW, as `training.start` sets them."""

FEW_TOKENS = 32
"""Up to which attention is two plain products on a CPU: at 16 tokens 1.3 to 1.6 times as fast as the fused kernel, at 49 at par."""


def fit_packed(
    members: Sequence[Training], train: Split, val: Split | StreamedSplit, stopped: Collection[int] = ()
) -> Iterator[dict[int, EpochResult | DivergedError]]:
    """Train all members to their configured lengths, an epoch of each per result.

    A member's numbers are those of `training.fit` but for the rounding of sums, whoever its neighbours are and whenever
    they leave: the order of its images, its augmentation and its dropout come from its own (seed, epoch). On a CPU in
    float32 the dropout masks, attention's included, are the very ones of `training.fit`; on a GPU they are other draws of
    the same law, since its fused kernels take no generator. Biases of keys alone may differ: softmax cancels them, so AdamW
    walks them along rounding errors, to no effect. The global random state is neither read nor set.

    At each result every member holds its true weights, optimiser and history: it can be saved, go on alone or in another
    pack. Who has left is left out of the next epoch's pack; within an epoch a member that diverged goes on as NaN, which
    touches no other row.

    Args:
        members: of one `shape`; their epochs may differ.
        stopped: places in `members` that the caller has given up; read before each epoch, so the caller may add to it.
    Returns: results by place in `members`; a member that diverged is last heard of by its error, and its state is of no more
        use. `images_per_s` counts the member's own images; `seconds` and memory are the pack's.
    Raises: PackError when they cannot be packed. OutOfMemoryError when a step does not fit into memory.
    """
    check(members, train)
    if members and members[0].device.type == "cuda":
        torch.set_float32_matmul_precision("high" if members[0].config.training.tf32 else "highest")
    diverged: set[int] = set()
    pack: _Pack | None = None
    while places := [i for i, m in enumerate(members) if m.epoch < m.config.training.epochs and i not in {*stopped, *diverged}]:
        if pack is None or pack.places != places:
            pack = _pack(members, places)
        results = _train_epoch(pack, train, val)
        diverged.update(place for place, result in results.items() if isinstance(result, DivergedError))
        yield results


def shape(training: Training) -> dict[str, object]:
    """What trainings must have in common to be packed, by the name of the field; all else may differ."""
    model, config = training.config.model, training.config.training
    alike = ("image_size", "in_channels", "num_classes", "patch_size", "dim", "depth", "heads", "activation", "norm", "pool", "positions")
    return {f"model.{name}": getattr(model, name) for name in (*alike, "qkv_bias")} | {
        "model.dim_head": model.head_width,
        "model.mlp_dim": model.mlp_width,
        "model.layer_scale": "none" if model.layer_scale is None else "some",
        "training.batch_size": config.batch_size,
        "training.precision": machine.autocast_type(training.config, training.device) or torch.float32,
        "training.tf32": config.tf32,
        "normalisation": [part.tolist() for part in (training.normalisation.mean, training.normalisation.std)],
        "device": training.device,
    }


def check(members: Sequence[Training], train: Split | StreamedSplit) -> None:
    """Refuse what cannot be packed.

    Raises: PackError that names the first member, by its place, and the field.
    """
    if not isinstance(train, Split):
        raise PackError("train is streamed from files; a pack needs its training images in memory: train these one by one.")
    for place, member in enumerate(members):
        first, own = shape(members[0]), shape(member)
        for name, value in own.items():
            if value != first[name]:
                raise PackError(f"member {place}: {name} is {value} where member 0 has {first[name]}; pack trainings of one shape.")
        if member.accumulation > 1:
            raise PackError(f"member {place}: training.accumulation is {member.accumulation}; a pack takes a batch whole: train it alone.")
        if member.scaler.is_enabled():
            raise PackError(f"member {place}: training.precision is float16, whose gradients are scaled; pack bfloat16 or float32.")
        if type(member.model.encoder) is not Encoder:
            raise PackError(f"member {place}: model.encoder is {type(member.model.encoder).__name__}; only the standard one can be packed.")


class _Batch(NamedTuple):
    """All that one step reads and that changes from step to step."""

    images: Tensor
    """(K, B, channels, height, width), normalised."""
    labels: Tensor
    """(K, B), int64, to count hits by."""
    targets: Tensor
    """(K, B, classes), mixed and smoothed; each sums to 1."""
    masks: Tensor
    """(K, M), factors of dropout and drop path: 0 or 1 / (1 - rate); a site's after another's, as in `_Pack.sites`."""
    now: Tensor
    """(K, 4), where each member's `_schedule` stands."""


class _Site(NamedTuple):
    """A place in the model where a training may drop something."""

    shape: tuple[int, ...]
    """Of one image's mask."""
    rates: list[float]
    """Of each member."""


@dataclass
class _Pack:
    """Members side by side in flat tensors; a row is a member."""

    places: list[int]
    members: list[Training]
    sites: dict[str, _Site]
    """Those where at least one member drops, in the order in which ViT.forward comes by them."""
    rates: Tensor
    """(K, sites), the same in one tensor."""
    weights: Tensor
    """(K, P), what weight decay shrinks first."""
    moments: tuple[Tensor, Tensor]
    """AdamW's, each (K, P)."""
    average: Tensor | None
    """(K, P), where a member asks for one; one that does not has its weights here."""
    leaves: dict[str, Tensor]
    """Views of `weights` as ViT names them, each (K, ...), for which gradients are taken."""
    decayed: int
    """How many of P shrink."""
    beta2: Tensor
    """(K, 1), and so is the next."""
    clip_norm: Tensor
    replay: Callable[[_Batch], Tensor] | None = None
    """The step of a whole batch as one CUDA graph, once it is captured."""


def _pack(members: Sequence[Training], places: list[int]) -> _Pack:
    chosen = [members[place] for place in places]
    configs, device = [member.config.training for member in chosen], chosen[0].device
    weights = torch.stack([_row(_weights(member.model)) for member in chosen])
    averaged = any(member.average is not None for member in chosen)
    matrices, _ = decayed(chosen[0].model)
    sites = _sites([member.config.model for member in chosen])
    return _Pack(
        places=places,
        members=chosen,
        sites=sites,
        rates=torch.tensor([site.rates for site in sites.values()], device=device).reshape(-1, len(chosen)).T,
        weights=weights,
        moments=(_moments(chosen, "exp_avg"), _moments(chosen, "exp_avg_sq")),
        average=torch.stack([_row(_weights(member.outcome)) for member in chosen]) if averaged else None,
        leaves={name: view.detach().requires_grad_() for name, view in _views(weights, chosen[0].model).items()},
        decayed=sum(p.numel() for p in matrices),
        beta2=_column([config.beta2 for config in configs], device),
        clip_norm=_column([config.clip_norm or math.inf for config in configs], device),
    )


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """(K, 1), float32."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]


def _weights(model: ViT) -> dict[str, nn.Parameter]:
    """Parameters by name, in the order of a row: what weight decay shrinks first."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: p for group in decayed(model) for p in group}


def _row(tensors: Mapping[str, Tensor]) -> Tensor:
    """(P,)."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def _views(rows: Tensor, model: ViT) -> dict[str, Tensor]:
    """The inverse of `_row`, for (P,) or (K, P)."""
    weights = _weights(model)
    parts = rows.split([p.numel() for p in weights.values()], dim=-1)
    return {name: part.unflatten(-1, p.shape) for (name, p), part in zip(weights.items(), parts, strict=True)}


def _moments(members: Sequence[Training], key: str) -> Tensor:
    """(K, P), of AdamW; 0 before its first step."""

    def moment(member: Training, weight: nn.Parameter) -> Tensor:
        own: Tensor | None = member.optimiser.state.get(weight, {}).get(key)
        return torch.zeros_like(weight) if own is None else own

    return torch.stack([_row({name: moment(m, p) for name, p in _weights(m.model).items()}) for m in members])


@torch.no_grad()
def _write_back(pack: _Pack, k: int, steps: int) -> None:
    """Give a member its weights, average and optimiser state after `steps` steps."""
    member = pack.members[k]
    sources = [_views(rows[k], member.model) for rows in (pack.weights, *pack.moments)]
    for name, weight in _weights(member.model).items():
        own, first, second = (source[name] for source in sources)
        weight.copy_(own)
        step = torch.tensor(float(steps), device=weight.device)
        member.optimiser.state[weight] = {"step": step, "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
    if member.average is not None and pack.average is not None:
        for name, source in _views(pack.average[k], member.model).items():
            _weights(member.average)[name].copy_(source)


# An epoch


def _train_epoch(pack: _Pack, train: Split, val: Split | StreamedSplit) -> dict[int, EpochResult | DivergedError]:
    members, device = pack.members, pack.weights.device
    size = members[0].config.training.batch_size
    steps = math.ceil(len(train) / size)
    log = torch.zeros(steps, 2, len(members), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    try:
        for i, batch in enumerate(_batches(pack, train)):
            if device.type == "cuda" and batch.labels.shape[1] == size:
                pack.replay = pack.replay or _captured(pack, batch)
                log[i] = pack.replay(batch)
            else:
                log[i] = _step(pack, batch)
    except RuntimeError as error:
        if not machine.out_of_memory(error):
            raise
        raise OutOfMemoryError(f"a step of {len(members)} packed trainings did not fit into memory; pack fewer.") from None
    losses, hits = log.double().cpu().unbind(1)
    trained = time.perf_counter()
    results: dict[int, EpochResult | DivergedError] = {}
    for k, (place, member) in enumerate(zip(pack.places, members, strict=True)):
        epoch = member.epoch + 1
        finite = losses[:, k].isfinite()
        if not finite.all():
            step = int(finite.int().argmin())
            results[place] = DivergedError(f"the loss is {float(losses[step, k])} in epoch {epoch}, step {step + 1} of {steps}")
            continue
        _write_back(pack, k, epoch * steps)
        evaluation = evaluate(member.outcome, val, member.normalisation)
        if not math.isfinite(evaluation.loss):
            results[place] = DivergedError(f"the validation loss is {evaluation.loss} after epoch {epoch}")
            continue
        result = EpochResult(
            epoch=epoch,
            train_loss=float(losses[:, k].sum()) / len(train),
            train_accuracy=float(hits[:, k].sum()) / len(train),
            val_loss=evaluation.loss,
            val_accuracy=evaluation.accuracy,
            val_top5_accuracy=evaluation.top5_accuracy,
            lr=lr_at(epoch * steps - 1, member.config.training.epochs * steps, member.config.training),
            images_per_s=len(train) / (trained - began),
            seconds=time.perf_counter() - began,
            peak_memory_bytes=machine.peak_memory(device),
        )
        member.history.append(result)
        results[place] = result
    return results


def _batches(pack: _Pack, train: Split) -> Iterator[_Batch]:
    """The batches of an epoch: each member's images in its own order, moved and mixed by its own draws."""
    configs = [member.config.training for member in pack.members]
    count, device, classes = len(configs), pack.weights.device, pack.members[0].config.model.num_classes
    seeds = [derive_seed(member.config.seed, "epoch", member.epoch + 1) for member in pack.members]
    generators = [Generator().manual_seed(seed) for seed in seeds]
    droppers = [Generator(device).manual_seed(seed) for seed in seeds]
    orders = [torch.randperm(len(train), generator=generator).split(configs[0].batch_size) for generator in generators]
    parts = [torch.cat(part) for part in zip(*orders, strict=True)]
    schedule = _schedule(pack.members, len(parts)).to(device)
    smoothing = _column([config.label_smoothing for config in configs], device)[:, :, None]
    one_hot, normalisation = torch.eye(classes, device=device), pack.members[0].normalisation
    for now, (raw, labels) in zip(schedule, train.batches(parts), strict=True):
        moved = torch.cat([augment.moved(*told) for told in zip(raw.chunk(count), configs, generators, strict=True)])
        images = augment.normalise(moved, normalisation.mean, normalisation.std).chunk(count)
        mixed = [augment.mixed(*told) for told in zip(images, labels.chunk(count), configs, generators, strict=True)]
        targets = one_hot[labels].unflatten(0, (count, -1))
        for own, (_, blend) in zip(targets, mixed, strict=True):
            if blend.others is not None and blend.share is not None:
                own.copy_(torch.lerp(one_hot[blend.others], own, blend.share[:, None]))
        yield _Batch(
            images=torch.stack([own for own, _ in mixed]),
            labels=labels.view(count, -1),
            targets=targets + smoothing * (1 / classes - targets),
            masks=_masks(pack, len(labels) // count, droppers),
            now=now,
        )


def _schedule(members: Sequence[Training], steps: int) -> Tensor:
    """What AdamW and the average do at each step of an epoch.

    Returns: (steps, K, 4): the learning rate over the first moment's bias correction; what weight decay leaves of a matrix;
        1 over the root of the second moment's correction; how far the average moves to the weights.
    """

    def at(member: Training, step: int) -> tuple[float, float, float, float]:
        config = member.config.training
        lr = lr_at(step, config.epochs * steps, config)
        blend = 1 - min(config.ema_decay or 0.0, (1 + step) / (10 + step))
        root = (1 - config.beta2 ** (step + 1)) ** -0.5
        return lr / (1 - BETA1 ** (step + 1)), 1 - lr * config.weight_decay, root, blend

    return torch.tensor([[at(member, member.epoch * steps + i) for member in members] for i in range(steps)])


def _sites(configs: Sequence[ModelConfig]) -> dict[str, _Site]:
    config, last = configs[0], max(configs[0].depth - 1, 1)
    tokens, path = (config.tokens, config.dim), (1, 1)

    def rates(kind: str) -> list[float]:
        own = [getattr(c, f"{kind}_dropout") for c in configs]
        return [c.dropout if rate is None else rate for c, rate in zip(configs, own, strict=True)]

    sites = {"embedding": _Site(tokens, rates("embedding"))}
    for i in range(config.depth):
        dropped = [c.drop_path * i / last for c in configs]
        sites |= {
            f"{i}.attention": _Site((config.heads, config.tokens, config.tokens), rates("attention")),
            f"{i}.projection": _Site(tokens, rates("projection")),
            f"{i}.path1": _Site(path, dropped),
            f"{i}.up": _Site((config.tokens, config.mlp_width), rates("mlp")),
            f"{i}.down": _Site(tokens, rates("mlp")),
            f"{i}.path2": _Site(path, dropped),
        }
    return {name: site for name, site in sites.items() if any(site.rates)}


def _masks(pack: _Pack, batch: int, generators: Sequence[Generator]) -> Tensor:
    """(K, M), drawn anew, each row by its member's generator alone: on a CPU draw by draw as ViT.forward does."""
    sizes = [batch * math.prod(site.shape) for site in pack.sites.values()]
    if pack.weights.is_cuda and sizes:
        drops = [[rate > 0 for rate in own] for own in zip(*(site.rates for site in pack.sites.values()), strict=True)]
        return masks_at_once(pack.rates, sizes, generators, drops)
    masks = torch.ones(len(generators), sum(sizes), device=pack.weights.device)
    for part, (name, site) in zip(masks.split(sizes, dim=1), pack.sites.items(), strict=True):
        for own, rate, generator in zip(part, site.rates, generators, strict=True):
            if rate and "path" in name:
                own.copy_(torch.rand(batch, generator=generator) >= rate).div_(1 - rate)
            elif rate:
                own.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
    return masks


def masks_at_once(rates: Tensor, sizes: Sequence[int], generators: Sequence[Generator], drops: Sequence[Sequence[bool]]) -> Tensor:
    """Masks drawn by one kernel a member, as a GPU wants it, whatever its neighbours drop.

    Args:
        rates: (K, sites), chances to drop. sizes: numbers of each site. generators: of each member.
        drops: (K, sites), whether the rate is above 0; on the host, which must not wait for the device.
    Returns: (K, sum of sizes), 0 or 1 / (1 - rate).
    """
    draws = torch.zeros(len(generators), sum(sizes), device=rates.device)
    for row, generator, own in zip(draws, generators, drops, strict=True):
        if all(own):
            row.uniform_(generator=generator)
        elif any(own):
            parts = [part for part, drop in zip(row.split(list(sizes)), own, strict=True) if drop]
            lengths = [len(part) for part in parts]
            fresh = torch.empty(sum(lengths), device=row.device).uniform_(generator=generator)
            torch._foreach_copy_(parts, list(fresh.split(lengths)))
    keep = torch.cat([1 - part.expand(-1, size) for part, size in zip(rates.split(1, dim=1), sizes, strict=True)], dim=1)
    return (draws < keep) / keep


# A step: no host waits inside, no Python number that changes, so that a CUDA graph can hold it


def _step(pack: _Pack, batch: _Batch) -> Tensor:
    """One step of every member: forward, backward, clipping, AdamW, average.

    Returns: (2, K), each member's summed loss before the step, and how many of its images were recognised.
    """
    device = pack.weights.device
    half = machine.autocast_type(pack.members[0].config, device)
    with torch.autocast(device.type, dtype=half, enabled=half is not None, cache_enabled=False):
        logits = _forward(pack, batch).float()
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(0, 1), reduction="none").view_as(batch.labels)
    gradients = torch.autograd.grad(losses.mean(1).sum(), list(pack.leaves.values()))
    _update(pack, torch.cat([gradient.flatten(1) for gradient in gradients], dim=1), batch.now)
    return torch.stack([losses.detach().sum(1), (logits.detach().argmax(-1) == batch.labels).sum(1)])


@torch.no_grad()
def _update(pack: _Pack, gradient: Tensor, now: Tensor) -> None:
    """Clip and apply a gradient (K, P), which is used up."""
    rate, shrink, root, blend = now.split(1, dim=1)
    first, second = pack.moments
    norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    gradient.mul_((pack.clip_norm / (norm + 1e-6)).clamp(max=1))
    first.lerp_(gradient, 1 - BETA1)
    second.lerp_(gradient.square_(), 1 - pack.beta2)
    pack.weights[:, : pack.decayed].mul_(shrink)
    divisor = torch.sqrt(second, out=gradient).mul_(root).add_(EPS).div_(rate)
    pack.weights.addcdiv_(first, divisor, value=-1)
    if pack.average is not None:
        pack.average.lerp_(pack.weights, blend)


def _forward(pack: _Pack, batch: _Batch) -> Tensor:
    """Logits (K, B, classes), as `ViT.forward` has them for each member."""
    config, leaves, sites = pack.members[0].config.model, pack.leaves, pack.sites
    members, count = batch.labels.shape
    parts = batch.masks.split([count * math.prod(site.shape) for site in sites.values()], dim=1)
    masks = {name: part.unflatten(1, (count, *site.shape)) for part, (name, site) in zip(parts, sites.items(), strict=True)}

    def linear(name: str, rows: Tensor) -> Tensor:
        weight, bias = leaves[f"{name}.weight"].transpose(1, 2), leaves.get(f"{name}.bias")
        return torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias[:, None], rows, weight)

    def norm(name: str, rows: Tensor) -> Tensor:
        plain = F.layer_norm(rows, rows.shape[-1:], eps=1e-6)
        return torch.addcmul(leaves[f"{name}.bias"][:, None], plain, leaves[f"{name}.weight"][:, None])

    def dropped(site: str, rows: Tensor) -> Tensor:
        return (rows.view(members, count, config.tokens, -1) * masks[site]).view_as(rows) if site in masks else rows

    def attention(i: int, rows: Tensor) -> Tensor:
        projected = linear(f"encoder.blocks.{i}.attention.qkv", rows)
        heads = projected.view(members * count, config.tokens, 3, config.heads, -1).permute(2, 0, 3, 1, 4)
        seen = _attend(heads, masks.get(f"{i}.attention")).transpose(1, 2).reshape(members, -1, config.heads * config.head_width)
        return dropped(f"{i}.projection", linear(f"encoder.blocks.{i}.attention.projection", seen))

    def mlp(i: int, rows: Tensor) -> Tensor:
        hidden = activation(linear(f"encoder.blocks.{i}.mlp.up", rows))
        return dropped(f"{i}.down", linear(f"encoder.blocks.{i}.mlp.down", dropped(f"{i}.up", hidden)))

    def branch(i: int, number: int, rows: Tensor) -> Tensor:
        run, name, scale = (attention, mlp)[number - 1], f"encoder.blocks.{i}.norm{number}", f"encoder.blocks.{i}.scale{number}.factor"
        out = run(i, norm(name, rows) if config.norm == "pre" else rows)
        out = dropped(f"{i}.path{number}", out * leaves[scale][:, None] if scale in leaves else out)
        return rows + out if config.norm == "pre" else norm(name, rows + out)

    activation = F.gelu if config.activation == "gelu" else F.relu
    positions = leaves["positions"] if "positions" in leaves else pack.members[0].model.positions
    patches = patchify(batch.images.flatten(0, 1), config.patch_size)
    tokens = linear("embed", patches.reshape(members, -1, patches.shape[-1])).view(members, count, -1, config.dim)
    if config.pool == "cls":
        tokens = torch.cat([leaves["cls_token"].expand(-1, count, -1, -1), tokens], dim=2)
    rows = dropped("embedding", (tokens + positions).flatten(1, 2))
    for i in range(config.depth):
        rows = branch(i, 2, branch(i, 1, rows))
    rows = norm("encoder.norm", rows) if config.norm == "pre" else rows
    tokens = rows.view(members, count, config.tokens, config.dim)
    return linear("head", tokens[:, :, 0] if config.pool == "cls" else tokens.mean(2))


def _attend(heads: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention.

    Args:
        heads: (3, K * B, heads, T, width), queries, keys and values.
        mask: (K, B, heads, T, T), factors of the attention weights.
    Returns: (K * B, heads, T, width).
    """
    if mask is None and (heads.is_cuda or heads.shape[3] > FEW_TOKENS):
        queries, keys, values = heads.unbind(0)
        return F.scaled_dot_product_attention(queries, keys, values)
    queries, keys, values = heads.reshape(3, -1, *heads.shape[3:]).unbind(0)
    scores = torch.bmm(queries * heads.shape[-1] ** -0.5, keys.transpose(1, 2))
    weights = scores.float().softmax(-1).to(scores.dtype)
    if mask is not None:
        weights = weights * mask.reshape(weights.shape)
    return torch.bmm(weights, values).view(heads.shape[1:])


def _captured(pack: _Pack, batch: _Batch) -> Callable[[_Batch], Tensor]:
    """`_step` for batches of this size as one CUDA graph, which costs one start where its kernels cost hundreds."""
    static = _Batch(*(part.clone() for part in batch))
    state = [pack.weights, *pack.moments, *([] if pack.average is None else [pack.average])]
    kept = [tensor.clone() for tensor in state]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries set themselves up outside of the graph
            _step(pack, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        result = _step(pack, static)
    for tensor, before in zip(state, kept, strict=True):
        tensor.copy_(before)

    def replay(fresh: _Batch) -> Tensor:
        for place, part in zip(static, fresh, strict=True):
            place.copy_(part)
        graph.replay()
        return result

    return replay
