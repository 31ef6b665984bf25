"""The demo: an offline Python helper that answers from the standard library's own documentation.

Fetches an encoder and the best catalog model that this machine can hold, reads the documentation of some
fifty modules into one SQLite file, then asks six questions. The sixth has no answer there. How likely an answer is
to be right comes from calibrations on 254 other questions, `python_helper/questions.jsonl`, made with
`edge calibrate`; each holds for the same model, prompt and retrieval only. At most one question in twenty is to get
a wrong answer of the large model, one in ten of the small: what is less sure is not given. The reader beside the
small model only tells how good the passages are: on this documentation its own answers are too often wrong.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edge_sdk import Answer, Edge, EdgeError
from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.config import load_settings
from edge_sdk.device import available_memory, cpu_name, default_threads
from edge_sdk.hub.models import pull

MODULES = """
argparse ast asyncio base64 bisect calendar collections concurrent.futures configparser contextlib copy csv
dataclasses datetime decimal difflib email enum fileinput fnmatch fractions functools getpass glob gzip hashlib
heapq html http.client inspect io ipaddress itertools json logging math mimetypes multiprocessing operator os
os.path pathlib pickle platform pprint queue random re secrets shelve shlex shutil signal smtplib socket sqlite3
statistics string struct subprocess tarfile tempfile textwrap threading time timeit tomllib traceback typing
unittest unittest.mock urllib.parse urllib.request uuid warnings weakref xml.etree.ElementTree zipfile zoneinfo
""".split()

QUESTIONS = [
    "What does Path.rglob do?",
    "What happens in subprocess.run when check is true and the process fails?",
    "What does asyncio.gather do with exceptions when return_exceptions is True?",
    "What does functools.lru_cache do when maxsize is None?",
    "What does shutil.copytree do with existing directories when dirs_exist_ok is true?",
    "What is the capital of Australia?",  # not in the corpus: the helper must say so
]

SMALL, LARGE = "smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct"
LARGE_NEEDS = 4 << 30  # bytes of free memory
CALIBRATIONS = Path(__file__).with_suffix("") / "calibrations"
ASSISTANT = Path(__file__).parent / "assistant" / "assistant.edge"  # what teaches the small model to read documents


def main() -> int:
    out = Console(highlight=False, soft_wrap=True)
    free = available_memory()
    model = LARGE if free is None or free >= LARGE_NEEDS else SMALL
    chosen: dict[str, object] = {"model": LARGE} if model == LARGE else {"bundle": ASSISTANT}
    settings = load_settings(chosen)
    settings = load_settings({**chosen, "store": settings.home / "python_helper.db"})
    out.rule("[bold]An offline Python helper")
    out.print(f"{cpu_name()}, {default_threads()} threads, {(free or 0) / (1 << 30):.1f} GiB free: {model}")
    if model == SMALL:
        out.print(
            f"Less than 4 GiB are free, so the small model answers, with reader and adapter of {ASSISTANT.name}."
        )

    for name in ("minilm-l6-int8", model):
        with bar(f"fetching {name}") as update:
            pull(name, settings, progress=update)
    started = time.perf_counter()
    with Edge.open(settings=settings) as edge:
        edge.calibrations = Calibrations(settings.home / "calibrations", shipped=CALIBRATIONS)
        with bar("reading documentation") as update:
            reports = edge.add([f"py:{module}" for module in MODULES], progress=update)
        for report in reports:
            if report.status == "failed":
                out.print(f"[yellow]left out: {escape(report.error)}")
        counts = edge.store.counts()
        out.print(
            f"{counts.documents} documents, {counts.passages} passages in {settings.store} "
            f"({settings.store.stat().st_size / 1e6:.0f} MB), {time.perf_counter() - started:.0f} s"
        )
        hold = 0 if model == LARGE else None  # the small model is done, and judged, in a moment
        answers = [ask(edge, number, question, hold, out) for number, question in enumerate(QUESTIONS, 1)]

    given = [answer for answer in answers[:-1] if answer.route == "local"]
    cited = sum(bool(answer.citations) for answer in given)
    honest = answers[-1].route == "abstain"
    out.rule()
    unsure = len(answers) - 1 - len(given)
    out.print(f"{cited} of {len(given)} answers cite their source; ", end="")
    out.print(f"{unsure} were not sure enough to be given; " if unsure else "", end="")
    out.print("the question without an answer was " + ("recognised." if honest else "[red]not recognised."))
    out.print(f"Why an answer was given: .venv/bin/edge route explain {answers[0].id} --store {settings.store}")
    out.print(f"Nothing left this machine. Ask your own: .venv/bin/edge chat --store {settings.store}")
    out.print(f"The same in a browser: .venv/bin/edge serve --store {settings.store}")
    return 0 if honest and cited == len(given) > 0 else 1


def ask(edge: Edge, number: int, question: str, hold: int | None, out: Console) -> Answer:
    """Print the answer as it comes, or with a `hold` of None when it is decided on, then where it is from."""
    out.print(f"\n[bold cyan]{number}. {escape(question)}")
    shown = ""
    for event in edge.stream(question, max_tokens=160, hold=hold):
        if event.kind == "provisional":
            shown += event.text
            out.file.write(event.text)
            out.file.flush()
        if event.answer is not None:
            answer = event.answer
    # Of a loop, for instance, only the beginning is the answer.
    differs = not shown or (answer.route == "local" and shown.strip() != answer.text)
    out.print(("\n" if shown else "") + answer.text if differs else "", markup=False)
    for citation in answer.citations:
        place = f"{citation.document} › {citation.heading}, characters {citation.start}-{citation.end}"
        out.print(f"   [{citation.number}] {place}", style="green", markup=False)
        out.print("       " + " ".join(citation.quote.split())[:160], style="dim", markup=False)
    if answer.probability is not None:
        out.print(f"   right with probability {answer.probability:.2f}", style="bold")
    if answer.route == "abstain":
        out.print("   " + "; ".join(answer.reasons), style="yellow", markup=False)
    times, tokens = answer.timings, answer.tokens
    parts = [f"retrieve {times.retrieve_ms:.0f} ms"]
    if times.prefill_ms and times.decode_ms:
        parts.append(f"read {tokens.prompt} tokens ({tokens.cached} cached) in {times.prefill_ms / 1000:.1f} s")
        parts.append(f"wrote {tokens.completion} at {tokens.completion / times.decode_ms * 1000:.0f} tokens/s")
    out.print("   " + ", ".join(parts), style="dim", markup=False)
    return answer


class bar:
    """A progress bar on a terminal; a line at the end elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Callable[[float, float | None, str], None]:
        self._started = time.perf_counter()
        self._progress.start()
        task = self._progress.add_task(self._title, total=None)
        return lambda done, total, detail: self._progress.update(task, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        if not sys.stderr.isatty():
            print(f"{self._title}: {time.perf_counter() - self._started:.1f} s")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
