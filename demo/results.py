"""What an adaptation came to, as HTML: numbers with n and interval, and what they do not say."""

from __future__ import annotations

from collections.abc import Sequence

from degaml_kedro.session import Accuracy, Answer, Change, Progress, Report
from degaml_kedro.tasks.example import Question, split_prompt
from demo.markup import accuracy_row, axis, bar, escape, note, table, user_text
from demo.visitors import Kept

_STAGES = {
    "base": "Base model",
    "generating": "Generate",
    "trying": "Try strategies",
    "executing": "Carry out",
    "scoring": "Score",
}
_KINDS = {
    "mended": "✓ mended",
    "broken": "✗ broken",
    "other": "still wrong",
}
_MOST_CHANGES = 100


def progress_bar(progress: Progress) -> str:
    """The stages, how far it is, and the time left."""
    order = [*_STAGES, "done"]
    now = order.index(progress.stage) if progress.stage in order else -1
    steps = ""
    for place, title in enumerate(_STAGES.values()):
        kind = "done" if place < now else "now" if place == now else ""
        current = ' aria-current="step"' if place == now else ""
        steps += f'<li class="{kind}"{current}>{escape(title)}</li>'
    left = f"{progress.seconds:.0f} s"
    if progress.stage == "done":
        left = f"done in {progress.seconds:.1f} s"
    elif progress.seconds_left is not None:
        left += f" · about {max(1, round(progress.seconds_left))} s left"
    share = round(100 * progress.share)
    return (
        f'<div class="dg-progress"><ol class="dg-steps">{steps}</ol>'
        f'<progress max="100" value="{share}" aria-label="Progress of the adaptation">{share} %</progress>'
        f'<p class="dg-line"><span>{escape(progress.message)}</span><span class="dg-quiet">{escape(left)}</span></p>'
        "</div>"
    )


def waiting_line(ahead: int) -> str:
    """The place in the queue."""
    if ahead <= 0:
        return ""
    others = "1 adaptation is" if ahead == 1 else f"{ahead} adaptations are"
    return (
        f'<p class="dg-queue" role="status">You are number <b>{ahead}</b> in the queue: {others} '
        "ahead of yours. It begins by itself; you can leave the queue with Cancel.</p>"
    )


_SEEN = "The generator was trained on this task, so this says little about new tasks."


def accuracies(report: Report, seen: bool = False) -> str:
    """Before and after on held-out examples, with intervals; where nothing was held out, what is known instead.

    Args:
        report: what is known.
        seen: whether the generator was trained on that very task.
    """
    parts: list[str] = []
    if report.held_out:
        rows = [
            accuracy_row("Base model", report.base, "base"),
            accuracy_row("Generated adapter", report.generated, "generated"),
            accuracy_row("Adapted model", report.adapted, "adapted"),
        ]
        parts.append(
            f'<h4 class="dg-sub">Accuracy on {report.held_out} held-out examples</h4>'
            f'<div class="dg-dots">{"".join(rows)}{axis()}</div>'
            f'<p class="dg-verdict">{escape(verdict(report))}</p>'
        )
    else:
        parts.append(
            note(
                "Nothing was held out, so no number here says how the adapter does on new questions. What follows is "
                "measured on the very examples it was adapted to, and is usually better than the truth.",
                "dg-warn",
            )
        )
    if seen:
        parts.append(note(_SEEN, "dg-warn"))
    parts.append(_support(report))
    parts += [note(f"{text[:1].upper()}{text[1:]}.", "dg-warn") for text in report.warnings]
    return f'<div class="dg-results">{"".join(parts)}</div>'


def verdict(report: Report) -> str:
    """The numbers in a sentence, with how sure they are.

    Args:
        report: of an adaptation with held-out examples.
    """
    before, after = report.base, report.adapted
    if before is None or after is None:
        return "More is measured while the adaptation goes on."
    n = f"n = {after.n}"
    if after.right == before.right:
        return f"The adapted model is right as often as the base model ({n})."
    better = after.share > before.share
    word = "more" if better else "fewer"
    told = f"The adapted model has {abs(after.right - before.right)} {word} of {after.n} right than the base model. "
    if _overlap(before, after):
        return f"{told}The intervals overlap: with {n} the difference may be chance. Hold out more examples to know."
    return f"{told}The intervals do not overlap, so this is unlikely to be chance ({n})."


def _overlap(one: Accuracy, other: Accuracy) -> bool:
    (low, high), (other_low, other_high) = one.interval, other.interval
    return low <= other_high and other_low <= high


def _support(report: Report) -> str:
    rows = [
        accuracy_row(label, accuracy, kind)
        for label, accuracy, kind in (
            ("Base model", report.base_support, "base"),
            ("Generated adapter", report.generated_support, "generated"),
        )
        if accuracy is not None
    ]
    best = [one for one in report.tried if one.executed and one.after is not None]
    if best:
        rows.append(accuracy_row("With the strategy", best[-1].after, "adapted"))
    if not rows:
        return ""
    title = f"On the {report.support} examples it was given (they decide which strategy is chosen)"
    picture = f'<div class="dg-dots">{"".join(rows)}{axis()}</div>'
    if not report.held_out:
        return f'<h4 class="dg-sub">{escape(title)}</h4>{picture}'
    return f'<details class="dg-more"><summary>{escape(title)}</summary>{picture}</details>'


def strategy(report: Report, explanation: str = "") -> str:
    """What was done, in plain words, and why."""
    if not report.words:
        return ""
    actions = "".join(f"<code>{escape(action)}</code>" for action in report.strategy)
    why = ""
    if explanation:
        lines = "".join(f"<li>{escape(line)}</li>" for line in explanation.splitlines() if line)
        why = f'<details class="dg-more"><summary>Why this one?</summary><ul>{lines}</ul></details>'
    times = " · ".join(f"{name} {value:.1f} s" for name, value in report.seconds.items())
    return (
        f'<div class="dg-strategy"><h4 class="dg-sub">What was done</h4><p class="dg-words">{escape(report.words)}.</p>'
        f'{actions}{why}<p class="dg-quiet">Time: {escape(times)}</p></div>'
    )


def proposals(report: Report) -> str:
    """Every strategy that was tried, with its score on the support examples."""
    if not report.tried:
        return ""
    rows = []
    for one in report.tried:
        if one.after is None:
            score = (
                f'<span class="dg-quiet">could not be carried out: {escape(one.error or "")}</span>'
            )
        else:
            score = bar(one.after.share, one.after.text, "adapted" if one.executed else "other")
        mark = ' <b class="dg-chosen">carried out</b>' if one.executed else ""
        told = f"to beat {one.before.share:.2f} · reward {one.reward:+.3f} · {one.seconds:.1f} s"
        rows.append(
            (
                f"{one.number}",
                f"{escape(one.words)}{mark}",
                f'{score}<span class="dg-under">{escape(told)}</span>',
            )
        )
    titles = ("#", "Strategy", "Score on the examples")
    kinds = ("dg-num", "dg-wide", "")
    marks = ["dg-executed" if one.executed else "" for one in report.tried]
    return (
        '<h4 class="dg-sub">What was tried</h4>'
        + table(titles, rows, "Strategies that were tried", kinds, marks)
        + note(
            "Scores are measured on the examples that were given; strategies that learn from answers are scored on "
            "halves they did not learn from."
        )
    )


def changes(report: Report) -> str:
    """Held-out questions that are answered otherwise than before."""
    if report.adapted is None:
        return ""
    title = '<h4 class="dg-sub">Answers that changed</h4>'
    if not report.changes:
        return title + note("Every held-out question is answered as before.")
    count = {kind: sum(one.kind == kind for one in report.changes) for kind in _KINDS}
    told = f"{count['mended']} mended, {count['broken']} broken, {count['other']} wrong in another way."
    shown = report.changes[:_MOST_CHANGES]
    rows = [
        (
            f'<span class="dg-tag dg-{one.kind}">{_KINDS[one.kind]}</span>',
            user_text(one.question, 300),
            _option(one, one.before),
            _option(one, one.after),
            _option(one, one.gold),
        )
        for one in shown
    ]
    titles = ("", "Question", "Before", "Now", "Right")
    more = len(report.changes) - len(shown)
    rest = note(f"And {more} more.") if more else ""
    return title + note(told) + table(titles, rows, "Answers that changed", ("", "dg-wide")) + rest


def _option(change: Change, place: int | None) -> str:
    return (
        '<span class="dg-quiet">none</span>' if place is None else user_text(change.options[place])
    )


def answers(question: Question, base: Answer, adapted: Answer, title: str) -> str:
    """The same question, asked of the base model and of the adapted one."""
    asked = split_prompt(question.prompt)[0]

    def side(name: str, answer: Answer, kind: str) -> str:
        rows = "".join(
            f'<li class="{"dg-picked" if place == answer.choice else ""}"><span>{user_text(option)}</span>'
            f"{bar(share, f'{100 * share:.1f} %', kind)}</li>"
            for place, (option, share) in enumerate(
                zip(question.options, answer.probabilities, strict=True)
            )
        )
        return (
            f'<section class="dg-side"><h4>{escape(name)}</h4><p class="dg-answer">{user_text(answer.text)}</p>'
            f"<ul>{rows}</ul></section>"
        )

    same = base.choice == adapted.choice
    told = "Both give the same answer." if same else "They give different answers."
    return (
        f'<div class="dg-answers" role="status"><p class="dg-asked">{user_text(asked, 500)}</p><div class="dg-sides">'
        + side("Base model", base, "base")
        + side(f"Adapted · {title}", adapted, "adapted")
        + f"</div>{note(f'{told} Bars are probabilities among the options given.')}</div>"
    )


def history(kept: Sequence[Kept], chosen: str | None, freed: int) -> str:
    """The visitor's adaptations, newest first.

    Args:
        kept: those that are still there.
        chosen: the id of the one that is asked and downloaded.
        freed: how many are not there any longer.
    """
    if not kept:
        return note("Nothing yet. Every adaptation you make on this page is listed here.")
    rows = []
    for one in reversed(kept):
        report = one.report
        mark = ' <b class="dg-chosen">selected</b>' if one.id == chosen else ""
        seen = f'<span class="dg-under">{escape(_SEEN)}</span>' if one.seen else ""
        rows.append(
            (
                f"{one.number}",
                f"{user_text(one.title, 60)}{mark}{seen}",
                f"{report.support} + {report.held_out}",
                escape(report.base.text if report.base else "–"),
                escape(report.adapted.text if report.adapted else "nothing held out"),
                f"{sum(report.seconds.values()):.0f} s",
            )
        )
    titles = ("#", "Task", "Examples", "Base model", "Adapted", "Time")
    kinds = ("dg-num", "dg-wide", "dg-num", "dg-keep", "dg-keep", "dg-num")
    rest = note(f"{freed} older one(s) were freed; so many are kept at once.") if freed else ""
    return table(titles, rows, "Your adaptations", kinds) + rest
