"""Losses as pure functions of tensors, and a solver for small convex ones."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 25  # logits held at once by `linear_cross_entropy`
TINY = torch.finfo(torch.float32).tiny


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T + bias` without keeping the logits: each chunk of rows leaves its gradients behind.

    In bf16 the softmax is computed in fp32 inside the kernel and stored in bf16; the loss is summed in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
        n = max(len(hidden), 1)
        rows = max(1, CHUNK // weight.shape[0])
        needs_weight = weight.requires_grad
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32 if n > rows else weight.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and bias.requires_grad else None
        loss = torch.zeros((), device=hidden.device)
        correct = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), rows):
            h, t = hidden[start : start + rows], target[start : start + rows]
            logits = F.linear(h, weight, bias)
            at = torch.arange(len(t), device=t.device)
            correct += (logits[at, t] == logits.amax(-1)).sum()
            p = torch.softmax(logits, -1)
            chosen = p[at, t]
            loss -= chosen.float().clamp(min=TINY).log().sum()
            p[at, t] = chosen - 1
            grad_hidden[start : start + rows] = p @ weight
            if grad_weight is not None:
                if n > rows:
                    grad_weight += p.t() @ h
                else:
                    grad_weight = p.t() @ h
            if grad_bias is not None:
                grad_bias += (torch.ones_like(p[:, :1]).t() @ p)[0]  # a product: `sum` would copy all of p to fp32
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.n, ctx.dtype = n, weight.dtype
        accuracy = correct / n
        ctx.mark_non_differentiable(accuracy)
        return loss / n, accuracy

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = grad / ctx.n
        return (
            grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale.to(grad_weight.dtype)).to(ctx.dtype),
            None if grad_bias is None else (grad_bias * scale).to(ctx.dtype),
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy, accuracy) of the vocabulary logits of hidden [N, D] against target [N], in constant memory.

    Equals `F.cross_entropy(F.linear(hidden, weight, bias), target)`; the accuracy carries no gradient.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, bias, target)
    rows = max(1, CHUNK // weight.shape[0])
    loss = correct = torch.zeros((), device=hidden.device)
    for start in range(0, len(hidden), rows):
        logits = F.linear(hidden[start : start + rows], weight, bias).float()
        loss = loss + F.cross_entropy(logits, target[start : start + rows], reduction="sum")
        correct = correct + (logits.argmax(-1) == target[start : start + rows]).sum()
    n = max(len(hidden), 1)
    return loss / n, correct / n


def info_nce(queries: Tensor, keys: Tensor, temperature: float, first: int = 0, also: Tensor | None = None) -> Tensor:
    """InfoNCE (van den Oord 2018) of queries [B, D] against keys [K, D], both of unit length; query i belongs to key `first + i`.
    `also` [B, K]: keys that belong to a query too, and are none of its negatives."""
    target = torch.arange(len(queries), device=queries.device) + first
    logits = queries.float() @ keys.float().t() / temperature
    if also is not None:
        logits = logits.masked_fill(also.scatter(1, target[:, None], False), -torch.inf)
    return F.cross_entropy(logits, target)


def nt_xent(views: Tensor, everyone: Tensor, temperature: float, first: int = 0) -> tuple[Tensor, Tensor]:
    """(NT-Xent, accuracy) of SimCLR (Chen et al. 2020): each of the pairs views [2, B, D] finds its partner among everyone [2, N, D].

    All of unit length; picture i of `views` is picture `first + i` of `everyone`. A vector is never compared with itself.
    """
    pairs, others = views.shape[1], everyone.shape[1]
    rows = torch.arange(pairs, device=views.device) + first
    own, partner = torch.cat([rows, rows + others]), torch.cat([rows + others, rows])
    scores = views.flatten(0, 1).float() @ everyone.flatten(0, 1).float().t() / temperature
    scores = scores.scatter(1, own[:, None], -torch.inf)
    return F.cross_entropy(scores, partner), (scores.detach().argmax(-1) == partner).float().mean()


def supervised_contrastive(
    rows: Tensor, label: Tensor, everyone: Tensor, labels: Tensor, temperature: float, first: int = 0
) -> tuple[Tensor, Tensor]:
    """(loss, accuracy) of supervised contrastive learning (Khosla et al. 2020, equation 2): each of rows [B, D] finds those of its label
    among everyone [N, D], all of unit length; row i is row `first + i` of `everyone`. Rows without a like do not count."""
    own = torch.arange(len(rows), device=rows.device)[:, None] + first
    scores = (rows.float() @ everyone.float().t() / temperature).scatter(1, own, -torch.inf)
    like = (label[:, None] == labels).scatter(1, own, False)
    count = like.sum(1)
    logs = F.log_softmax(scores, -1).masked_fill(~like, 0.0).sum(1) / count.clamp(min=1)
    found = (labels[scores.detach().argmax(-1)] == label)[count > 0].float()
    return -logs.sum() / (count > 0).sum().clamp(min=1), found.mean() if len(found) else found.sum()


def cosent(similarity: Tensor, score: Tensor, scale: float) -> Tensor:
    """CoSENT (Su 2022) of pairs [B]: log(1 + sum of exp(scale * (s_i - s_j)) over all i, j whose score_i < score_j). What counts is the
    order of similarities, not their values."""
    gaps = scale * (similarity[:, None] - similarity[None, :]).float()
    wrong = score[:, None] < score[None, :]
    return torch.cat([gaps.new_zeros(1), gaps[wrong]]).logsumexp(0)


def off_diagonal(square: Tensor) -> Tensor:
    """[N, N] -> [N * (N - 1)]: all but the diagonal."""
    return square[~torch.eye(len(square), dtype=torch.bool, device=square.device)]


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of -cos over rows [B, D]; no gradient goes into `target`."""
    return -F.cosine_similarity(predicted.float(), target.detach().float(), dim=-1).mean()


def vicreg_terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(invariance, variance, covariance) of two views [B, D] (VICReg, Bardes et al. 2022, equations 1 to 5, as its code weighs them)."""
    first, second = first.float(), second.float()
    rows, width = first.shape
    variance = covariance = torch.zeros((), device=first.device)
    for view in (first, second):
        centred = view - view.mean(0)
        variance = variance + F.relu(1 - (centred.var(0) + 1e-4).sqrt()).mean() / 2
        shared = centred.t() @ centred / (rows - 1)
        covariance = covariance + (shared.square().sum() - shared.diagonal().square().sum()) / width
    return F.mse_loss(first, second), variance, covariance


def barlow_twins(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(invariance, redundancy) of two views [B, D]: how far their cross-correlation is from one on the diagonal and from zero beside
    it, both summed (Barlow Twins, Zbontar et al. 2021)."""
    first, second = (F.batch_norm(x.float(), None, None, training=True) for x in (first, second))
    shared = first.t() @ second / len(first)
    diagonal = shared.diagonal()
    return (diagonal - 1).square().sum(), shared.square().sum() - diagonal.square().sum()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Scores [B, K] to soft codes [B, K] that share the batch equally among the prototypes (Cuturi 2013; SwAV, Caron et al. 2020).

    Rows sum to one; columns to B / K, the nearer the more rounds.
    """
    codes = ((scores.float() - scores.max()) / epsilon).exp()
    rows, prototypes = codes.shape
    for _ in range(rounds):
        codes = codes / codes.sum(0, keepdim=True).clamp(min=TINY) / prototypes
        codes = codes / codes.sum(1, keepdim=True).clamp(min=TINY) / rows
    return codes * rows


def across_views(targets: Sequence[Tensor], scores: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy of every target [B, K] against the softmax of every view's scores [B, K] but its own, the one at its place."""
    logs = [F.log_softmax(s.float(), -1) for s in scores]
    total = sum(logs[1:], start=logs[0])
    crossed = [(target * (total - own)).sum() for target, own in zip(targets, logs, strict=False)]
    return -torch.stack(crossed).sum() / (len(targets) * (len(scores) - 1) * len(total))


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each example, summed over all that it has (Kingma and Welling 2014): [B, ...] -> [B]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def entropy(shares: Tensor) -> Tensor:
    """Of distributions over the last axis, in nats."""
    return -torch.special.xlogy(shares, shares).sum(-1)


@torch.no_grad()
def spread(vectors: Tensor) -> Tensor:
    """Deviation of the directions [B, D] over the batch, times sqrt(D): 1 where they fill all of space, 0 where they are all one."""
    return F.normalize(vectors.float(), dim=-1).std(0, correction=0).mean() * vectors.shape[1] ** 0.5


def ordinal_targets(target: Tensor, classes: int) -> Tensor:
    """Soft labels that fall with the distance of ranks (SORD, Diaz and Marathe 2019): [B] -> [B, classes]."""
    ranks = torch.arange(classes, device=target.device)
    return torch.softmax(-(target[:, None] - ranks[None, :]).abs().float(), -1)


def settle(parameters: Sequence[Tensor], loss: Callable[[], Tensor], decay: float, most: int = 200) -> None:
    """Minimise `loss() + decay * |matrices|^2` over a few parameters in place (L-BFGS, all data at once: a head on frozen features)."""
    parameters = list(parameters)
    engine = torch.optim.LBFGS(parameters, max_iter=most, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        engine.zero_grad()
        value = loss() + decay * sum(p.square().sum() for p in parameters if p.ndim > 1)
        value.backward()
        return value

    engine.step(closure)
    engine.zero_grad()


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) of the distributions over the last axis, p of the logits `clean` and q of `other`: the mean over all else."""
    p, q = F.log_softmax(clean.float(), -1), F.log_softmax(other.float(), -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def symmetric_divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p), which is the sum of (p - q) * (log p - log q)."""
    p, q = F.log_softmax(clean.float(), -1), F.log_softmax(other.float(), -1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()
