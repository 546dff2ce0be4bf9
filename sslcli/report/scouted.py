"""Which objectives a scout tried before the long run, and what it decided from."""

from typing import Any

from sslcli.report.figures import Figures
from sslcli.report.markup import Html, joined, table, tag
from sslcli.report.record import number
from sslcli.report.sections import section

SHOWN = ("probe", "spearman", "knn", "rankme", "alignment", "uniformity")  # scores of a pilot


def scouted(figures: Figures) -> Html | None:
    board, words = figures.record.scout, figures.words
    pilots = [p for p in board.get("pilots", ()) if isinstance(p, dict)] if isinstance(board.get("pilots"), list) else []
    if not pilots or not isinstance(board.get("chosen"), str):
        return None
    untrained = board["untrained"] if isinstance(board.get("untrained"), dict) else {}
    keys = [k for k in SHOWN if k in untrained]
    key, rows = str(board.get("by")), []
    for pilot in pilots:
        looks = [look for look in pilot.get("looks", ()) if isinstance(look, dict)] if isinstance(pilot.get("looks"), list) else []
        last = max(looks, key=lambda look: number(_scores(look).get(key)) or 0.0) if looks else {}  # the best look decides
        scores = _scores(last)
        end = pilot.get("why") or words("goes_on" if pilot.get("name") == board["chosen"] else "out_on", rung=len(looks))
        cells = [figures.plain("seconds", last.get("seconds")), figures.plain("", last.get("steps"))]
        rows.append(
            (
                len(looks),
                number(scores.get(key)) or 0.0,
                [words.name(pilot.get("name")), *cells, *(figures.plain(k, scores.get(k)) for k in keys), end],
            )
        )
    lines = [row for *_, row in sorted(rows, key=lambda r: r[:2], reverse=True)]
    lines.append([words("untrained_network"), "", "", *(figures.plain(k, untrained[k]) for k in keys), ""])
    head = [words("objective"), words("time"), words("steps"), *(words.name(k) for k in keys), words("end")]
    said = words("scouted", count=len(pilots), chosen=words.name(board["chosen"]), by=words.name(board.get("by")))
    return section(words("h_scout"), tag("p", said), joined([table(head, lines)]))


def _scores(look: dict[str, Any]) -> dict[str, Any]:
    return found if isinstance(found := look.get("scores"), dict) else {}
