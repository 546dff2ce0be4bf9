"""The field's standard scores, as pure functions of lists, by the field's libraries; each headline score with a bootstrap interval."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES, LEVEL = 1000, 0.95
DRAWN = 1 << 25  # counts that are held at once while resampling
SHARE = (0.0, 1.0)  # what a score can be, where it is not among these
BOUNDS = {
    **dict.fromkeys(("mae", "nll", "loss", "perplexity", "bits_per_byte", "brier"), (0.0, np.inf)),
    **dict.fromkeys(("spearman", "pearson", "quadratic_kappa"), (-1.0, 1.0)),
}


def interval(counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> list[float]:
    """Percentile bootstrap of a statistic of summed counts: rows [N, C] are resampled, `statistic` takes [R, C] sums to [R]."""
    rows, repeats = np.unique(counts, axis=0, return_counts=True)
    kinds = rows.astype(float)  # sums are exact, and products of integers are slow
    return _interval(repeats, lambda drawn: statistic(drawn.astype(float) @ kinds), seed)


def _interval(repeats: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> list[float]:
    """The same of rows that come in kinds, `repeats` [K] of each: equal ones are exchangeable, so draw how often each kind comes."""
    random = np.random.Generator(np.random.Philox(key=[seed, 0xB007]))
    shares, together = repeats / repeats.sum(), max(1, min(RESAMPLES, DRAWN // len(repeats)))
    sizes = [together] * (RESAMPLES // together) + [RESAMPLES % together] * (RESAMPLES % together > 0)
    values = np.concatenate([statistic(random.multinomial(int(repeats.sum()), shares, size=size)) for size in sizes])
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [round(float(low), 6), round(float(high), 6)]


def mean_interval(values: Sequence[float], of: str | None = None) -> tuple[float, float]:
    """Student's 95 % interval for the mean of a few runs, cut to what the score `of` that name can be."""
    from scipy.stats import t

    half = float(t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    mean = float(np.mean(values))
    least, most = BOUNDS.get(of, SHARE) if of else (-np.inf, np.inf)
    return max(mean - half, least), min(mean + half, most)


def collapse(gold: Sequence[Any], said: Sequence[Any]) -> str | None:
    """What is wrong with predictions that are worth no more than one answer for all; None where nothing is. Labels, or lists of them."""
    if gold and isinstance(gold[0], list):
        true, answers = ({x for row in rows for x in row} for rows in (gold, said))
        return f"says {', '.join(answers) or 'no label'} everywhere" if len(answers) <= 1 < len(true) else None
    usual = max(sorted(set(gold)), key=list(gold).count, default=None)
    if len(set(gold)) > 1 and len(set(said)) == 1:
        return f"says {said[0]} everywhere"
    if len(set(gold)) > 1 and _macro_f1(gold, said) <= _macro_f1(gold, [usual] * len(gold)):
        return f"macro-F1 is at chance: no better than always {usual}"
    return None


def _macro_f1(gold: Sequence[Any], said: Sequence[Any]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(gold, said, average="macro", zero_division=0))


def classification(gold: Sequence[int] | np.ndarray, guess: Sequence[int] | np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1 over the classes that occur in gold or guess, and the table per class."""
    gold_, guess_ = np.asarray(gold), np.asarray(guess)
    report = class_report(gold_, guess_, names)
    scores: dict[str, Any] = {"accuracy": float((gold_ == guess_).mean()), "macro_f1": report["macro avg"]["f1-score"]}
    scores["accuracy_interval"] = interval((gold_ == guess_).astype(np.int64)[:, None], lambda s: s[:, 0] / len(gold_))
    scores["macro_f1_interval"] = _macro_interval(gold_, guess_, len(names))
    scores["report"] = {k: _rounded(row) for k, row in report.items()}
    return scores


def _macro_interval(gold: np.ndarray, guess: np.ndarray, classes: int) -> list[float]:
    cells, repeats = np.unique(gold * classes + guess, return_counts=True)
    true, said = cells // classes, cells % classes

    is_gold, is_guess = ((which[:, None] == np.arange(classes)).astype(float) for which in (true, said))  # products of integers are slow
    is_hit = is_gold * (true == said)[:, None]

    def statistic(sums: np.ndarray) -> np.ndarray:
        drawn = sums.astype(float)
        at_gold, at_guess, hit = (drawn @ which for which in (is_gold, is_guess, is_hit))
        total = at_gold + at_guess
        f1 = np.divide(2 * hit, total, out=np.zeros(total.shape), where=total > 0)
        return f1.sum(1) / np.maximum((total > 0).sum(1), 1)

    return _interval(repeats, statistic)


def class_report(gold: np.ndarray, guess: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support of every class that occurs in gold or guess, and their means: scikit-learn's
    classification_report from one pass, where that takes four."""
    from sklearn.metrics import precision_recall_fscore_support

    present = sorted(set(gold.tolist()) | set(guess.tolist()))
    table = np.stack(precision_recall_fscore_support(gold, guess, labels=present, zero_division=0), 1)  # [classes, 4]
    total, support = table[:, 3].sum(), table[:, 3]
    means = {"macro avg": table[:, :3].mean(0), "weighted avg": support @ table[:, :3] / total}
    rows = [*((names[i], row) for i, row in zip(present, table, strict=True)), *((k, [*row, total]) for k, row in means.items())]
    return {name: dict(zip(("precision", "recall", "f1-score", "support"), map(float, row), strict=True)) for name, row in rows}


def within(ranks: Sequence[int] | np.ndarray, at: Sequence[int], name: str) -> dict[str, Any]:
    """Share of ranks (the best is 0) that are among the first k, for every k: top-k accuracy (`top`) or Recall@k (`recall@`)."""
    ranks_ = np.asarray(ranks)
    scores: dict[str, Any] = {}
    for k in at:
        hits = (ranks_ < k).astype(np.int64)
        scores[f"{name}{k}"] = float(hits.mean())
        scores[f"{name}{k}_interval"] = interval(hits[:, None], lambda s: s[:, 0] / len(ranks_))
    return scores


def calibration_error(confidence: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): |accuracy - confidence| in bins of equal width, weighed by how many are in each."""
    confidence_, right_ = np.asarray(confidence, float), np.asarray(right, float)
    at = np.clip(np.ceil(confidence_ * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(at, right_ - confidence_, bins)
    return float(np.abs(gaps).sum() / len(confidence_))


def adaptive_calibration_error(confidence: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, bins: int = 15) -> float:
    """The same in bins of equally many (Nguyen and O'Connor 2015): a model that is nearly always sure fills few bins of equal width."""
    confidence_, right_ = np.asarray(confidence, float), np.asarray(right, float)
    order = np.argsort(confidence_, kind="stable")
    gaps = [part.sum() for part in np.array_split((right_ - confidence_)[order], min(bins, len(order)))]
    return float(np.abs(gaps).sum() / len(confidence_))


def binomial_upper(errors: int, of: int, doubt: float) -> float:
    """The share that errors so rare rule out with confidence 1 - doubt: the exact one-sided bound (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    return 1.0 if errors >= of else float(beta.ppf(1 - doubt, errors + 1, of - errors))


def average_precision(relevant: np.ndarray) -> np.ndarray:
    """[Q] of which results are relevant, [Q, G] in the order in which they were found; 0 where none is."""
    hits = np.cumsum(relevant, 1, dtype=np.int32)
    found = hits[:, -1]
    total = ((hits / np.arange(1, relevant.shape[1] + 1)) * relevant).sum(1)
    return np.divide(total, found, out=np.zeros(len(relevant)), where=found > 0)


def retrieval(
    ranks: Sequence[int] | np.ndarray, precisions: Sequence[float] | np.ndarray, at: Sequence[int] = (1, 5, 10)
) -> dict[str, Any]:
    """Recall@k from the rank (0: first) of each query's first relevant result, and mAP from the queries' average precisions."""
    return {**within(ranks, at, "recall@"), **mean("map", precisions)}


def ndcg(found: np.ndarray, relevant: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """nDCG@k [Q] (Jarvelin and Kekalainen 2002) of results that are relevant or not, [Q, G] in order, of so many relevant ones [Q]."""
    gains = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(gains)[np.minimum(np.asarray(relevant), k) - 1]
    return found[:, :k] @ gains[: found.shape[1]] / best


def mean(name: str, values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Of a score that each of Q queries has."""
    each = np.asarray(values, float)
    kinds = np.round(each, 3)[:, None]  # rounded: few kinds to draw from
    return {name: float(each.mean()), f"{name}_interval": interval(kinds, lambda s: s[:, 0] / len(each))}


def similarity(gold: Sequence[float] | np.ndarray, said: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Correlation of ranks (Spearman) and of values (Pearson) of N pairs; 0 where one side never varies. The interval of Spearman's
    is that of resampled ranks, which are not ranked anew."""
    from scipy.stats import pearsonr, rankdata, spearmanr

    true, guess = np.asarray(gold, float), np.asarray(said, float)
    scores: dict[str, Any] = {"pairs": len(true)}
    for name, test, of in (("spearman", spearmanr, rankdata), ("pearson", pearsonr, np.array)):
        varies = np.ptp(true) > 0 and np.ptp(guess) > 0
        scores[name] = float(test(true, guess).statistic) if varies else 0.0
        scores[f"{name}_interval"] = _correlation_interval(of(true), of(guess)) if varies else [0.0, 0.0]
    return scores


def _correlation_interval(x: np.ndarray, y: np.ndarray) -> list[float]:
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    moments = np.stack([x, y, x * x, y * y, x * y], 1)

    def statistic(drawn: np.ndarray) -> np.ndarray:
        a, b, aa, bb, ab = (drawn @ moments / len(x)).T
        spread = np.sqrt(np.maximum(aa - a * a, 0) * np.maximum(bb - b * b, 0))
        return np.divide(ab - a * b, spread, out=np.zeros(len(spread)), where=spread > 0)

    return _interval(np.ones(len(x), np.int64), statistic)


def multi_label(gold: np.ndarray, guess: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """gold, guess [N, C] of 0 and 1: exact-match accuracy, micro- and macro-F1."""
    from sklearn.metrics import classification_report, f1_score

    # scikit-learn takes a lone column for two classes: beside one that is not scored it never stands alone
    gold_, guess_ = (np.pad(x, ((0, 0), (0, 1))) for x in (gold, guess))
    exact, columns = (gold == guess).all(1), range(len(names))
    report = classification_report(gold_, guess_, labels=columns, target_names=list(names), output_dict=True, zero_division=0)
    counts = np.concatenate([gold & guess, gold, guess], 1).astype(np.int64)

    def macro(sums: np.ndarray) -> np.ndarray:
        hit, true, said = np.split(sums, 3, axis=1)
        return np.divide(2 * hit, true + said, out=np.zeros(hit.shape), where=true + said > 0).mean(1)

    return {
        "accuracy": float(exact.mean()),
        "accuracy_interval": interval(exact.astype(np.int64)[:, None], lambda s: s[:, 0] / len(exact)),
        "macro_f1": float(f1_score(gold_, guess_, labels=columns, average="macro", zero_division=0)),
        "macro_f1_interval": interval(counts, macro),
        "micro_f1": float(f1_score(gold_, guess_, labels=columns, average="micro", zero_division=0)),
        "micro_f1_interval": interval(np.stack([c.sum(1) for c in np.split(counts, 3, axis=1)], 1), _f1),
        "report": {k: _rounded(v) for k, v in report.items()},
    }


def label_map(gold: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over labels of the average precision of their probabilities [N, C], of those that occur in gold [N, C]."""
    from sklearn.metrics import average_precision_score

    occurs = gold.any(0)
    return float(average_precision_score(gold[:, occurs], probabilities[:, occurs], average="macro")) if occurs.any() else 0.0


def ordinal(gold: Sequence[int] | np.ndarray, guess: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """Mean distance of ranks, and quadratically weighted kappa."""
    from sklearn.metrics import cohen_kappa_score

    distance = np.abs(np.asarray(gold) - np.asarray(guess))
    ranks = range(1 + max(np.max(gold), np.max(guess)))  # those that do not occur are as far apart
    kappa = cohen_kappa_score(gold, guess, weights="quadratic", labels=ranks) if len(np.union1d(gold, guess)) > 1 else 1.0
    kappa_interval = _kappa_interval(np.asarray(gold, np.int64), np.asarray(guess, np.int64))
    mae_interval = interval(distance.astype(np.int64)[:, None], lambda s: s[:, 0] / len(distance))
    return {
        "mae": float(distance.mean()),
        "mae_interval": mae_interval,
        "quadratic_kappa": float(kappa),
        "quadratic_kappa_interval": kappa_interval,
    }


def _kappa_interval(gold: np.ndarray, guess: np.ndarray) -> list[float]:
    """1 - observed / expected squared distance; what is expected follows from both margins' means and squares."""
    pairs, repeats = np.unique(np.stack([gold, guess], 1), axis=0, return_counts=True)
    true, said = pairs.T.astype(float)

    def statistic(drawn: np.ndarray) -> np.ndarray:
        n = drawn.sum(1)
        observed = drawn @ (true - said) ** 2 / n
        expected = drawn @ true**2 / n + drawn @ said**2 / n - 2 * (drawn @ true / n) * (drawn @ said / n)
        return 1 - np.divide(observed, expected, out=np.zeros(len(drawn)), where=expected > 0)

    return _interval(repeats, statistic)


def entities(gold: Sequence[Sequence[str]], guess: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Entity-level precision, recall and F1 (micro) of BIO tags, equal to conlleval; the report per type with all averages."""
    from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

    gold_, guess_ = [list(x) for x in gold], [list(x) for x in guess]
    if not any(t != "O" for x in (*gold_, *guess_) for t in x):
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "f1_interval": [0.0, 0.0], "report": {}}
    report = classification_report(gold_, guess_, output_dict=True, zero_division=0)
    counts = _entity_counts(gold_, guess_)
    return {
        "precision": float(precision_score(gold_, guess_, zero_division=0)),
        "precision_interval": interval(counts, lambda s: _share(s[:, 0], s[:, 2])),
        "recall": float(recall_score(gold_, guess_, zero_division=0)),
        "recall_interval": interval(counts, lambda s: _share(s[:, 0], s[:, 1])),
        "f1": float(f1_score(gold_, guess_, zero_division=0)),
        "f1_interval": interval(counts, _f1),
        "report": {k: _rounded(v) for k, v in report.items()},
    }


def _entity_counts(gold: Sequence[list[str]], guess: Sequence[list[str]]) -> np.ndarray:
    """[N, 3]: entities found, in gold, in guess, sentence by sentence."""
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    for true, said in zip(gold, guess, strict=True):
        a, b = set(get_entities(true)), set(get_entities(said))
        counts.append((len(a & b), len(a), len(b)))
    return np.array(counts, np.int64)


def _f1(sums: np.ndarray) -> np.ndarray:
    """Of sums [R, 3]: found, in gold, in guess."""
    return _share(2 * sums[:, 0], sums[:, 1] + sums[:, 2])


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: int(v) if k == "support" else round(float(v), 6) for k, v in row.items()}
