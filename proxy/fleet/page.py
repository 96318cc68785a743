"""A fleet as one HTML page that needs nothing but itself: a heat map whose cells open the verdicts.

Profiles are other people's files: all that comes from them is escaped, and the script puts it in as text.
"""

import base64
import hashlib
import importlib.resources
import json
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

import proxy
from proxy.fleet.matrix import Fleet, in_short
from proxy.judging.explain import what_the_guest_sees
from proxy.judging.verdict import Action, Verdict

if TYPE_CHECKING:
    from proxy.fleet.baseline import Baseline
    from proxy.judging.check import Answer


def render(fleet: Fleet, policy: str) -> str:
    """Return the page.

    Args:
        fleet: Hosts and answers.
        policy: What the answers rest on, in a few words.
    """
    style, script, page = (_read(f"page.{kind}") for kind in ("css", "js", "html"))
    numbers = _numbered(fleet)
    looks = [_look(answer) for answer in fleet.answers.values()]
    return Template(page).substitute(
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        version=escape(proxy.__version__),
        policy=escape(policy),
        count=len(fleet.hosts),
        pairs=len(looks),
        as_is=looks.count("is"),
        repaired=looks.count("repaired"),
        refused=looks.count("refused"),
        columns="".join(f'<th scope="col">{escape(host.name)}</th>' for host in fleet.hosts),
        rows="\n".join(_row(fleet, host.name, numbers) for host in fleet.hosts),
        groups="".join(f"<li>{escape(', '.join(group))}</li>" for group in fleet.groups()),
        baselines="".join(map(_baseline, fleet.baselines)) or "<li>No flags of -cpu host bring hosts together.</li>",
        hosts="".join(_host(fleet, index) for index in range(len(fleet.hosts))),
        data=_embedded(_details(_distinct(fleet))),
    )


def _read(name: str) -> str:
    return importlib.resources.files("proxy.fleet").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _distinct(fleet: Fleet) -> "list[Answer]":
    """Return the answers that differ; pairs of like hosts share theirs."""
    return list({id(answer): answer for answer in fleet.answers.values()}.values())


def _numbered(fleet: Fleet) -> dict[int, int]:
    return {id(answer): number for number, answer in enumerate(_distinct(fleet))}


def _look(answer: "Answer") -> str:
    if not answer.goes:
        return "refused"
    return "is" if in_short(answer) == "as it is" else "repaired"


def _row(fleet: Fleet, source: str, numbers: dict[int, int]) -> str:
    cells = []
    for host in fleet.hosts:
        if host.name == source:
            cells.append('<td class="self" aria-label="the same host">&ndash;</td>')
            continue
        answer = fleet.answers[source, host.name]
        words = in_short(answer)
        label = escape(f"{source} to {host.name}: {words}")
        cells.append(
            f'<td><button type="button" class="{_look(answer)}" data-answer="{numbers[id(answer)]}" '
            f'aria-label="{label}" aria-haspopup="dialog">{escape(words)}</button></td>'
        )
    return f'<tr><th scope="row">{escape(source)}</th>{"".join(cells)}</tr>'


def _host(fleet: Fleet, index: int) -> str:
    host = fleet.hosts[index]
    midr = host.profile.midr
    identity = host.processor if midr is None else f"{host.processor} ({midr:#x})"
    where = ", ".join(fleet.destinations(host.name)) or "nowhere"
    return (
        f"<li><strong>{escape(host.name)}</strong>{escape(identity)}"
        f'<br><span class="faint">{escape(host.profile.kernel or "kernel not known")}; '
        f"{escape(host.profile.description)}</span><br>guests can go to: {escape(where)}</li>"
    )


def _baseline(baseline: "Baseline") -> str:
    lines = [f"<strong>{escape(baseline.start.qemu)}</strong>{escape(', '.join(baseline.hosts))}"]
    lines.append(f"<br>{escape(baseline.in_short())}")
    if baseline.start.off:
        lines.append(f"<pre>{escape(baseline.start.libvirt)}</pre>")
    costs = (f"{cost.name}=off: no {cost.loses} ({', '.join(cost.fields)})" for cost in baseline.costs)
    lines += [f'<br><span class="faint">{escape(cost)}</span>' for cost in costs]
    return f"<li>{''.join(lines)}</li>"


def _details(answers: "list[Answer]") -> dict[str, Any]:
    """Return the answers as the script wants them: equal verdicts, of which there are many, stand once."""
    verdicts: dict[tuple[str, ...], int] = {}
    return {
        "answers": [
            {
                "differences": list(answer.differences),
                "unguarded": [f"{erratum}: {erratum.summary}" for erratum in answer.errata.unguarded],
                "lost": list(answer.lost),
                "verdicts": [verdicts.setdefault(_verdict(one), len(verdicts)) for one in answer.verdicts],
            }
            for answer in answers
        ],
        "verdicts": list(verdicts),
    }


def _verdict(verdict: Verdict) -> tuple[str, ...]:
    old, new = ("(none)" if value is None else f"{value:#x}" for value in (verdict.old, verdict.new))
    values = {Action.SWAP: f"{old} → {new}", Action.DROP: old}.get(verdict.action, f"{old} here, {new} there")
    seen = what_the_guest_sees(verdict) or ""
    return verdict.action.value, verdict.name, values, verdict.why, seen, verdict.rule, verdict.advice


def _embedded(value: object) -> str:
    """Return JSON that no HTML parser can leave before its end."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
