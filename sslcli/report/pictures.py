"""What a run made, to be looked at: reconstructions, neighbours, worst errors; and, with matplotlib, confusion and a map of vectors."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.errors import BadInput
from sslcli.report.sheet import BLUE, GREEN, RED, Cell, picture, save, sheet, shortened

ACROSS = 8  # pictures in a row of a sheet without columns
COLOURS = 18  # that can be told apart, and from the grey of the rest
LETTERS = 22  # of a label on an axis or in a legend
NAMED = 30  # classes of a confusion matrix; of more, those that are confused most
FAMILIES = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei")  # for labels in Chinese
MAPPED = 5000  # points of a map; t-SNE takes some seconds a thousand


def reconstructions(path: Path, original: Any, masked: Any, rebuilt: Any, title: str = "Reconstruction of hidden patches") -> None:
    """[N, C, S, S] each, uint8 or between 0 and 1."""
    rows = [[Cell(picture(p)) for p in part] for part in (original, masked, rebuilt)]
    save(sheet(rows, title, sides=("original", "masked", "reconstruction")), path)


def neighbours(
    path: Path,
    queries: Any,
    gold: Sequence[str] | None,
    found: Sequence[Any],
    labels: Sequence[Sequence[str]] | None,
    similarity: Sequence[Sequence[float]],
    title: str = "Nearest neighbours",
) -> None:
    """A row a query [C, S, S]: the query and its neighbours found [k, C, S, S], nearest first. Without labels nothing is right or wrong."""
    rows, places = [], 3 if min((s for how in similarity for s in how), default=0) < 0.995 else 5
    for i, (query, near, how) in enumerate(zip(queries, found, similarity, strict=True)):
        names = labels[i] if labels is not None else [""] * len(near)
        true = gold[i] if gold is not None else ""
        cells = [Cell(picture(query), (true,), BLUE, BLUE)]
        for pixels, name, value in zip(near, names, how, strict=True):
            colour = GREEN if name == true else RED
            said = (name, f"{value:.{places}f}") if name else (f"{value:.{places}f}",)
            cells.append(Cell(picture(pixels), said, colour, colour) if name else Cell(picture(pixels), said))
        rows.append(cells)
    columns = ["query", *(str(i) for i in range(1, max(map(len, rows), default=1)))]
    legend = ((BLUE, "query"), (GREEN, "same label"), (RED, "another label")) if gold is not None else ((BLUE, "query"),)
    save(sheet(rows, f"{title} (cosine similarity beneath)", legend, columns, apart=0), path)


def worst(path: Path, pictures: Any, gold: Sequence[str], predicted: Sequence[str], probability: Sequence[float], title: str) -> None:
    """Pictures [N, C, S, S] that were taken for something else, the surest first."""
    cells = [
        Cell(picture(p), (said, f"is {true}", f"{sure:.1%}"), ink=RED)
        for p, true, said, sure in zip(pictures, gold, predicted, probability, strict=True)
    ]
    rows = [cells[i : i + ACROSS] for i in range(0, len(cells), ACROSS)]
    legend = ((RED, "predicted; beneath, what it is, and how likely the prediction was held"),)
    save(sheet(rows, title, legend), path)


def confusion(path: Path, gold: Sequence[str], predicted: Sequence[str], names: Sequence[str], title: str = "Confusion") -> None:
    """Rows are what pictures are, columns what they were taken for; colour is the share of the row, numbers are pictures."""
    pyplot = plotter()
    counts = np.zeros((len(names), len(names)), np.int64)
    ids = {name: i for i, name in enumerate(names)}
    np.add.at(counts, ([ids[g] for g in gold], [ids[p] for p in predicted]), 1)
    if len(names) > NAMED:
        wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        chosen = np.sort(np.argsort(-wrong, kind="stable")[:NAMED])
        counts, names = counts[np.ix_(chosen, chosen)], [names[i] for i in chosen]
        title += f": the {NAMED} classes of {len(ids)} that are confused most"
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.5, 0.42 * len(names) + 2.2)
    figure, axes = pyplot.subplots(figsize=(side + 0.8, side), layout="constrained")
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places, shown = range(len(names)), [_short(n) for n in names]
    axes.set_xticks(places, shown, rotation=90 if max(map(len, shown)) > 3 else 0)
    axes.set_yticks(places, shown)
    axes.set(xlabel="predicted", ylabel="is", title=title)
    for i, j in np.argwhere(counts):
        number = f"{counts[i, j]:,}" if counts[i, j] < 10_000 else f"{counts[i, j] / 1000:.0f}k"
        axes.text(j, i, number, ha="center", va="center", fontsize=7.5, color="white" if shares[i, j] > 0.55 else "black")
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of the row")
    keep(pyplot, figure, path)


def embedding_map(path: Path, vectors: Any, labels: Sequence[str], method: str = "pca", title: str = "Map of the vectors") -> None:
    """Vectors [N, D] of unit length in two dimensions (`pca`, or `tsne` of scikit-learn), a colour a label."""
    pyplot = plotter()
    every, unit = np.asarray(labels), np.asarray(vectors, np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    rows = np.random.default_rng(0).permutation(len(unit))[:MAPPED]
    every, unit = every[rows], unit[rows]
    flat, said = _flat(unit, method)
    common = [name for name, _ in Counter(every.tolist()).most_common()]
    shown = sorted(common if len(common) <= COLOURS else common[: COLOURS - 1])
    palette = pyplot.get_cmap("tab10").colors if len(common) <= 10 else _without_grey(pyplot.get_cmap("tab20").colors)
    figure, axes = pyplot.subplots(figsize=(8.6, 6.4), layout="constrained")
    size = float(np.clip(12_000 / len(flat), 4, 36))
    rest = ~np.isin(every, shown)
    if rest.any():
        axes.scatter(*flat[rest].T, s=size / 2, color="0.8", linewidths=0, label=f"{len(common) - len(shown)} other labels")
    for i, name in enumerate(shown):
        axes.scatter(*flat[every == name].T, s=size, color=palette[i], alpha=0.75, linewidths=0, label=_short(name))
    axes.set(xticks=[], yticks=[], title=f"{title}, {len(flat):,} pictures ({said})")
    figure.legend(loc="outside right upper", frameon=False, markerscale=6 / size**0.5)
    keep(pyplot, figure, path)


def _flat(unit: np.ndarray, method: str) -> tuple[np.ndarray, str]:
    from sklearn.decomposition import PCA

    if method == "tsne" and len(unit) > 4:
        from sklearn.manifold import TSNE

        narrow = PCA(min(50, *unit.shape), random_state=0).fit_transform(unit)
        near = min(30.0, (len(unit) - 1) / 3)
        return TSNE(perplexity=near, init="pca", random_state=0).fit_transform(narrow), "t-SNE: near is alike, distances say little"
    fitted = PCA(2, random_state=0).fit(unit)
    return fitted.transform(unit), f"PCA: {fitted.explained_variance_ratio_.sum():.0%} of the variance"


def _without_grey(colours: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    return [c for c in colours if max(c) - min(c) > 0.05]


def _short(name: object) -> str:
    return shortened(str(name), LETTERS)


def plotter() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise BadInput("matplotlib: missing, and this picture needs it; pip install 'sslcli[report]'") from error
    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    pyplot.rcParams["font.family"] = [*(f for f in FAMILIES if f in font_manager.get_font_names()), "DejaVu Sans"]
    return pyplot


def keep(pyplot: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a letter that no font of this machine has is drawn as a box
        figure.savefig(path, dpi=110)
    pyplot.close(figure)
