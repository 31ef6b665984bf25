"""`edge calibrate` and `edge route`: labels to probabilities with a certificate, and decisions explained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ..confidence.calibration import Calibration, Calibrations, load
from ..confidence.risk import check_target
from ..config import Settings
from ..errors import CalibrationError, ConfigError
from ..loading import existing_store, require_store
from ..prompt import Style
from ..records import Answer, Contribution, Explanation, Neighbour, Reckoning, Timings, TokenCounts
from .options import cancel_on_interrupt, console, options, png_path, print_json, progress_bar

_KINDS = ("marginal", "marginal_hp", "selective", "regret", "regret_hp")


@click.command()
@click.argument("questions", type=click.Path(path_type=Path))
@click.option("--risk", type=click.Choice(_KINDS), default="marginal", show_default=True, help="What is bounded.")
@click.option("--alpha", default=0.1, show_default=True, type=float, help="The most of it that is allowed.")
@click.option(
    "--delta", default=0.1, show_default=True, type=float, help="How often a bound may fail (_hp, selective)."
)
@click.option("--labels", type=click.Choice(["contains", "exact", "f1"]), default="contains", show_default=True)
@click.option("--brief", is_flag=True, help="Calibrate for `edge ask --brief`.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1, 8192))
@click.option("-k", default=8, show_default=True, type=click.IntRange(1, 50), help="Passages to consider.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the answers here (JSONL) and resume.")
@options(
    *("store", "bundle", "require_signature", "model", "adapter", "encoder", "reader", "context", "threads"),
    *("evidence_tokens", "cache_type"),
    *("remote", "remote_model", "remote_key_file", "remote_prices", "budget", "privacy", "privacy_send"),
)
def calibrate_command(
    settings: Settings,
    questions: Path,
    risk: str,
    alpha: float,
    delta: float,
    labels: str,
    brief: bool,
    max_tokens: int,
    k: int,
    out: Path | None,
    as_json: bool,
) -> int:
    """Learn from QUESTIONS (JSONL: question, answers) how likely local answers are to be right, with a certificate.

    \b
    marginal     of all questions, at most alpha get a wrong local answer, on average (default)
    marginal_hp  the same with probability 1 - delta
    selective    of the answers served locally, at most alpha are wrong, with probability 1 - delta
    regret       of all questions, at most alpha get a wrong local answer that the remote has right (--remote);
                 regret_hp with probability 1 - delta

    The questions must be of the kind that will be asked, with answers from the documents in the store. Three in
    five are fitted on, the others set the threshold. It holds for this model, prompt and retrieval only.

    With a reader, its answers are calibrated as well, and each of the two gets half of the risk.
    """
    from ..edge import Edge
    from ..route import Policy

    # The toolchain stands above the runtime: loaded by name only.
    work, asking = import_module("quantize.calibrate"), import_module("quantize.asking")
    check_target(risk, alpha, delta)  # type: ignore[arg-type]  # click has checked the name
    rows = asking.read_questions(questions)
    work.check_enough(rows)
    require_store(settings)
    style: Style = "brief" if brief else "full"
    target = work.Target(kind=risk, alpha=alpha, delta=delta)
    with Edge.open(settings=settings, policy=Policy(when_unsure="local")) as edge:
        edge.calibrations = None  # the one that exists must not decide what is measured
        if edge.extractor is not None:
            target = work.halves(target)
        if not risk.startswith("regret"):
            edge.remote = None  # its answers say nothing of this risk
        edge.learned = None  # every question is to be asked
        if edge.handoff is not None:
            edge.handoff.queues = False
        with cancel_on_interrupt() as cancel, progress_bar("answering") as bar:
            asked = asking.ask_all(
                edge, rows, out=out, style=style, max_tokens=max_tokens, k=k, progress=bar, cancel=cancel
            )
        if cancel.is_set():
            kept = f"what was answered is kept in {out}, run the same command to go on"
            click.echo(f"edge: interrupted; {kept if out else '--out FILE would keep the answers'}", err=True)
            return 130
        made = [work.calibrate(asked, edge.setup(style, k), labeller=labels, target=target)]
        if edge.extractor is not None:
            with progress_bar("reading") as bar:
                read = asking.read_all(edge, rows, k=k, progress=bar)
            if risk.startswith("regret"):
                remote = {each.question: each.remote for each in asked}
                read = [replace(each, remote=remote[each.question]) for each in read]
            made.append(work.calibrate(read, edge.reader_setup(k), labeller=labels, target=target))
    folder = Calibrations(settings.home / "calibrations")
    saved = [(calibration, folder.save(calibration)) for calibration in made]
    if as_json:
        model, *reader = (_summary(calibration, path) for calibration, path in saved)
        print_json(model | ({"reader": reader[0]} if reader else {}))
        return 0
    for calibration, path in saved:
        _show(calibration, path)
    return 0


@click.command()
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    callback=png_path,
    help="Draw the newest one here (PNG): risk-coverage, reliability.",
)
@options()
def route_report_command(settings: Settings, plot: Path | None, as_json: bool) -> None:
    """What each calibration is worth, counted on the questions that it was not fitted on."""
    folder = settings.home / "calibrations"
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise CalibrationError(f"there is no calibration in {folder}", hint="run `edge calibrate QUESTIONS.jsonl`")
    calibrations = [(path, load(path)) for path in paths]
    if plot is not None:
        newest = max((calibration for _, calibration in calibrations), key=lambda each: each.created)
        import_module("quantize.plot_route").draw(newest, plot)
    if as_json:
        print_json([_summary(calibration, path) for path, calibration in calibrations])
        return
    for path, calibration in calibrations:
        _show(calibration, path)


@click.command()
@click.argument("id")
@options("store")
def route_explain_command(settings: Settings, id: str, as_json: bool) -> None:
    """Say why the question with this ID (of `edge ask --json` and `--why`) went where it did."""
    with existing_store(settings) as store:
        kept = store.decision(id)
    if kept is None:
        raise ConfigError(f"no decision {id!r} is kept in {settings.store}", hint="ids are in `edge ask --json`")
    record = json.loads(kept)
    if as_json:
        print_json(record)
        return
    try:
        text = _as_answer(record).explain()
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the decision {id!r} was kept in another form", hint="use --json") from error
    console().print(text)


def _as_answer(record: dict[str, Any]) -> Answer:
    """A kept decision as the answer that it was about, without its text, which is not kept."""
    why = record["explanation"]
    if why is not None:
        remote = why.get("remote")  # earlier decisions have none
        parts = {
            "contributions": _contributions(why),
            "nearest": tuple(Neighbour(**near) for near in why["nearest"]),
            "remote": remote and Reckoning(**{**remote, "contributions": _contributions(remote)}),
        }
        why = Explanation(**{**why, **parts})
    return Answer(
        text="",
        citations=(),
        probability=record["probability"],
        route=record["route"],
        reasons=tuple(record["reasons"]),
        timings=Timings(),
        tokens=TokenCounts(),
        model=record["model"],
        left_device=record["left_device"],
        id=record["id"],
        explanation=why,
    )


def _contributions(kept: dict[str, Any]) -> tuple[Contribution, ...]:
    return tuple(Contribution(**part) for part in kept["contributions"])


def _summary(calibration: Calibration, path: Path) -> dict[str, Any]:
    metrics = import_module("quantize.route_metrics")
    scores = [each.probability for each in calibration.held_out]
    right = [each.right for each in calibration.held_out]
    mixed = 0 < sum(right) < len(right)
    certificate = calibration.certificate
    return {
        "file": str(path),
        "setup": dict(calibration.setup.parts),
        "created": calibration.created,
        "labels": calibration.labels,
        "n": calibration.n,
        "held_out": len(right),
        "right": sum(right) / len(right) if right else None,
        "auroc": metrics.auroc(scores, right) if mixed else None,
        "ece": metrics.expected_calibration_error(scores, right) if right else None,
        "ece_if_exact": metrics.calibration_noise(scores).value if right else None,
        "brier": metrics.brier(scores, right) if right else None,
        "risk_coverage": [
            {"coverage": point.coverage, "risk": point.risk}
            for point in _twenty(metrics.risk_coverage(scores, right) if right else ())
        ],
        "certificate": None if certificate is None else json.loads(certificate.to_json()),
    }


def _twenty(points: Sequence[Any]) -> list[Any]:
    """The first point, the last, and some between."""
    pieces = min(20, len(points) - 1)
    return [points[round(at * (len(points) - 1) / max(pieces, 1))] for at in range(pieces + 1)]


def _show(calibration: Calibration, path: Path) -> None:
    summary, out = _summary(calibration, path), console()

    def text(value: float | None) -> str:
        return "not to be told" if value is None else f"{value:.3f}"

    out.print(f"{path}")
    out.print(f"  {calibration.n} questions of {calibration.created}; right means: {calibration.labels}")
    out.print(f"  on {summary['held_out']} of them that it was not fitted on: {text(summary['right'])} right")
    out.print(f"  AUROC {text(summary['auroc'])}, Brier score {text(summary['brier'])}")
    out.print(
        f"  expected calibration error {text(summary['ece'])} (were it exact: {text(summary['ece_if_exact'])})"
    )
    for share, risk in ((point["coverage"], point["risk"]) for point in summary["risk_coverage"][::-4][::-1]):
        out.print(f"  serving {share:4.0%}: {risk:4.0%} of it wrong  {'#' * round(40 * risk)}")
    if calibration.certificate is not None:
        out.print(f"  {calibration.certificate.sentence()}")
    strongest = sorted(calibration.models["after"].terms.items(), key=lambda pair: -abs(pair[1].weight))[:6]
    out.print("  strongest signals: " + ", ".join(f"{name} {term.weight:+.2f}" for name, term in strongest))
