"""Answers of a remote model that were paid for once: in quarantine, checked, then served for the same question.

Only an accepted answer is served, for no other question, not past its expiry, and with the sentence that says where
it is from. It is knowledge of the remote, so it stays when documents change. Knows nothing of how questions become
vectors or of how an answer is shown.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..citations import is_refusal
from ..storage.schema import storable
from ..storage.vectors import VectorIndex, quantize_rows
from . import learned_table as table
from .agreement import holding_passage, same_answer
from .learned_table import STATES, LearnedAnswer, Provenance, State
from .rewording import difference, needs_more

if TYPE_CHECKING:
    from ..storage.database import Database

SIMILARITY_FLOOR = 0.75
"""Cosine below which two questions are never compared; the rules of `rewording` decide among those above it.

Measured with MiniLM-L6 int8 (`quantize.evaluate_learning.measure_questions`): share that is taken for the question

                                                          cosine .75   cosine .90   .75 and rules
    12,500 real questions (SQuAD, NQ-open, BoolQ,
    HaluEval), another one among them                      4.0 %        0.73 %       0.03 %, see below
    3,023 near misses made by rules from SQuAD             89 %         70 %         0.13 % (95 % bound 0.30 %)
    5,141 near misses made by rules from NQ-open           84 %         28 %         0.25 % (0.40 %)
    1,393 paraphrases made by rules from SQuAD             100 %        99 %         98 %
    3,042 paraphrases made by rules from NQ-open           99.8 %       69 %         99 %

The 0.03 % are two pairs that do ask the same; no other question was taken for one (95 % bound 0.024 %). The cosine
tells little, so its floor is low. People paraphrase more freely than rules: of 30 pairs written by hand, 17 pass.
"""

LIFETIME_DAYS = 90.0
LONGEST_ANSWER = 8_000
_COMPARED = 8  # nearest questions that the rules look at
_ALL = 256  # more than the answers to one question that are kept, whatever became of them
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Learning:
    """What became of a remote answer: kept under `id` as `state`, or not at all; the reason is a sentence."""

    id: int | None
    state: State | None
    reason: str


class LearnedAnswers:
    """The learned answers of one store whose questions were embedded by one encoder.

    Several processes may use one file; each sees at once what another has accepted or rejected. Not for several
    threads at once.
    """

    def __init__(
        self,
        database: Database,
        encoder: str = "",
        *,
        lifetime_days: float = LIFETIME_DAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`encoder` is its fingerprint: to find and to learn; `clock` gives seconds since 1970."""
        self._database, self._encoder = database, encoder
        self._lifetime, self._clock = lifetime_days * _DAY, clock
        self._accepted: tuple[str | None, VectorIndex | None] = ("", None)

    @property
    def empty(self) -> bool:
        """Whether nothing was ever learned here; needs no encoder."""
        with self._database.reading() as sql:
            return table.generation(sql) is None

    def find(self, question: str, vector: NDArray[np.float32]) -> LearnedAnswer | None:
        """The accepted answer to this very question, however it is put; None when there is none.

        `vector` [d] is the question's, of unit length. Among the nearest questions above `SIMILARITY_FLOOR` it is
        the first that does not differ by `rewording.difference`. Nothing is written: call `count_use` once the
        answer has been shown.
        """
        if needs_more(question):
            return None
        with self._database.reading() as sql:
            generation = table.generation(sql)
            if self._accepted[0] != generation:
                self._accepted = generation, _index(sql, ("accepted",), self._encoder)
            return next(_same(sql, self._accepted[1], question, vector, self._clock(), _COMPARED), None)

    def count_use(self, id: int) -> None:
        """Note that an answer was served."""
        with self._database.writing() as sql:
            sql.execute("UPDATE learned_answers SET uses = uses + 1 WHERE id = ?", (id,))

    def learn(
        self,
        question: str,
        vector: NDArray[np.float32],
        answer: str,
        provenance: Provenance,
        *,
        passages: Sequence[str] = (),
    ) -> Learning:
        """Put a remote answer into quarantine, and accept it when something speaks for it.

        That is the same answer by words from an earlier call, or one of `passages` (texts that were retrieved for
        the question) that holds a short answer's words (`agreement`). Give the text as the user sees it: what was
        redacted before sending is restored in it and stays on the device; for such a turn (`provenance.redacted`)
        nothing but the user's `accept` counts. Not kept: what needs more than its words to be understood, refusals,
        and a text that was rejected for this question. A cut answer must not be given at all.
        """
        if reason := needs_more(question) or _unusable(answer):
            return Learning(None, None, f"not learned: {reason}")
        question, answer, now = storable(question), storable(answer), self._clock()
        with self._database.writing() as sql:
            table.expire(sql, now)
            known = list(_same(sql, _index(sql, STATES, self._encoder), question, vector, -inf, _ALL))
            if any(each.state == "rejected" and same_answer(each.answer, answer) for each in known):
                return Learning(None, None, "not learned: this answer was rejected for this question")
            alike = next((each for each in known if same_answer(each.answer, answer)), None)
            if alike is not None and alike.state == "accepted":
                return Learning(alike.id, "accepted", "known already")
            if not provenance.redacted:
                provenance = replace(provenance, agreement=_agreement(question, answer, alike, passages))
            contested = any(each.state == "accepted" for each in known)  # what the user may have chosen stays
            if alike is not None:
                sql.execute("DELETE FROM learned_answers WHERE id = ?", (alike.id,))
            id = self._insert(sql, question, vector, answer, provenance, now)
            if provenance.agreement and not contested:
                _accept(sql, id, question, vector, self._encoder)
            table.trim(sql)
            table.count_change(sql)
        if provenance.agreement and not contested:
            return Learning(id, "accepted", f"learned: {'; '.join(provenance.agreement)}")
        why = "another answer to this question is accepted" if contested else "nothing speaks for it yet"
        return Learning(id, "quarantine", f"in quarantine until the user accepts it: {why}")

    def accept(self, id: int) -> LearnedAnswer:
        """Serve this answer from now on, as the user decided, whatever it was; others to its question expire.

        Its time starts anew. Raises `EdgeError` when there is no such answer.
        """
        with self._database.writing() as sql:
            row = table.row_of(sql, id)
            agreement = tuple(dict.fromkeys((*row.provenance.agreement, "accepted by the user")))
            codes, scale, encoder = sql.execute(
                "SELECT codes, scale, encoder FROM learned_answers WHERE id = ?", (id,)
            ).fetchone()
            sql.execute(
                "UPDATE learned_answers SET provenance = ?, expires_at = ? WHERE id = ?",
                (table.dumped(replace(row.provenance, agreement=agreement)), self._clock() + self._lifetime, id),
            )
            vector = np.frombuffer(codes, np.int8).astype(np.float32) * np.float32(scale)
            _accept(sql, id, row.question, vector, encoder)
            table.count_change(sql)
            return table.row_of(sql, id)

    def reject(self, id: int) -> LearnedAnswer:
        """Never serve this answer, and do not learn the same text for this question again. Raises as `accept`."""
        with self._database.writing() as sql:
            table.row_of(sql, id)
            sql.execute("UPDATE learned_answers SET state = 'rejected' WHERE id = ?", (id,))
            table.count_change(sql)
            return table.row_of(sql, id)

    def drop(self, id: int) -> None:
        """Forget an answer as if it had never been. Raises as `accept`."""
        with self._database.writing() as sql:
            table.row_of(sql, id)
            sql.execute("DELETE FROM learned_answers WHERE id = ?", (id,))
            table.count_change(sql)

    def answers(self, *states: State) -> list[LearnedAnswer]:
        """All answers in these states (default: all), the newest first."""
        with self._database.reading() as sql:
            return list(table.listed(sql, states or STATES, self._clock()))

    def distillation_set(self) -> list[dict[str, object]]:
        """Accepted answers as JSON objects {question, answer, provenance, learned, expires}, the oldest first.

        Left out is every turn in which something was redacted, even if the user accepted it: its text holds what
        was not to leave the device, and a training set travels.
        """
        return [
            {
                "question": each.question,
                "answer": each.answer,
                "provenance": asdict(each.provenance),
                "learned": each.created,
                "expires": each.expires,
            }
            for each in reversed(self.answers("accepted"))
            if not each.provenance.redacted
        ]

    def reindex(self, encode: Callable[[Sequence[str]], NDArray[np.float32]], batch: int = 64) -> int:
        """Embed the questions of another encoder, which are not found until then; returns how many."""
        done = 0
        while True:
            with self._database.reading() as sql:
                rows = sql.execute(
                    "SELECT id, question FROM learned_answers WHERE encoder <> ? LIMIT ?", (self._encoder, batch)
                ).fetchall()
            if not rows:
                return done
            codes, scales = quantize_rows(encode([str(question) for _, question in rows]))
            with self._database.writing() as sql:
                sql.executemany(
                    "UPDATE learned_answers SET codes = ?, scale = ?, encoder = ? WHERE id = ?",
                    [
                        (code.tobytes(), float(scale), self._encoder, id)
                        for code, scale, (id, _) in zip(codes, scales, rows, strict=True)
                    ],
                )
                table.count_change(sql)
            done += len(rows)

    # --- rows ---------------------------------------------------------------------------------------

    def _insert(
        self,
        sql: sqlite3.Connection,
        question: str,
        vector: NDArray[np.float32],
        answer: str,
        provenance: Provenance,
        now: float,
    ) -> int:
        codes, scales = quantize_rows(vector[None])
        inserted = sql.execute(
            """INSERT INTO learned_answers
            (question, codes, scale, encoder, answer, provenance, state, created_at, expires_at)
            VALUES (?, ?, ?, ?, ?, ?, 'quarantine', ?, ?)""",
            (
                question,
                codes.tobytes(),
                float(scales[0]),
                self._encoder,
                answer,
                table.dumped(provenance),
                now,
                now + self._lifetime,
            ),
        )
        return int(inserted.lastrowid or 0)


def _index(sql: sqlite3.Connection, states: Sequence[State], encoder: str) -> VectorIndex | None:
    rows = sql.execute(
        f"""SELECT id, codes, scale FROM learned_answers
        WHERE encoder = ? AND state IN ({", ".join("?" * len(states))}) ORDER BY id""",
        (encoder, *states),
    ).fetchall()
    length = max((len(codes) for _, codes, _ in rows), default=0)
    rows = [row for row in rows if len(row[1]) == length]  # one that has lost bytes is not found
    if not length:
        return None
    ids, codes, scales = zip(*rows, strict=True)
    return VectorIndex.of(
        np.array(ids, np.int64),
        np.frombuffer(b"".join(codes), np.int8).reshape(len(rows), length),
        np.array(scales, np.float32),
    )


def _same(
    sql: sqlite3.Connection,
    index: VectorIndex | None,
    question: str,
    vector: NDArray[np.float32],
    now: float,
    compared: int,
) -> Iterator[LearnedAnswer]:
    """The answers in `index` to this question that outlive `now`, the nearest question first."""
    if index is None or not np.isfinite(vector).all():
        return
    ids, cosines = index.top_k(vector, compared)
    for id, cosine in zip(ids.tolist(), cosines.tolist(), strict=True):
        if cosine < SIMILARITY_FLOOR:
            return
        row = sql.execute(
            f"SELECT {table.COLUMNS} FROM learned_answers WHERE id = ? AND expires_at > ?", (id, now)
        ).fetchone()
        if row is not None and not difference(question, str(row[1])):
            yield replace(table.read(row), similarity=cosine)


def _accept(sql: sqlite3.Connection, id: int, question: str, vector: NDArray[np.float32], encoder: str) -> None:
    """Accept one answer; others that were accepted for its question expire, so that one is served."""
    for other in _same(sql, _index(sql, ("accepted",), encoder), question, vector, -inf, _ALL):
        if other.id != id:
            sql.execute("UPDATE learned_answers SET state = 'expired' WHERE id = ?", (other.id,))
    sql.execute("UPDATE learned_answers SET state = 'accepted' WHERE id = ?", (id,))


def _agreement(question: str, answer: str, alike: LearnedAnswer | None, passages: Sequence[str]) -> tuple[str, ...]:
    """What speaks for an answer, in words; empty where nothing does."""
    found = []
    if alike is not None and not alike.provenance.redacted and alike.state == "quarantine":
        found.append(f"two calls gave the same answer, {alike.provenance.model} on {alike.created[:10]} the first")
    if (held := holding_passage(question, answer, passages)) is not None:
        found.append(f"passage {held + 1} of those retrieved holds its words")
    return tuple(found)


def _unusable(answer: str) -> str:
    if not answer.strip():
        return "the answer is empty"
    if len(answer) > LONGEST_ANSWER:
        return f"the answer is longer than {LONGEST_ANSWER} characters"
    lower = answer.casefold().replace("’", "'")
    if is_refusal(answer) or any(phrase in lower[:200] for phrase in _KNOWS_NOT):
        return "it is no answer"
    return ""


_KNOWS_NOT = ("i don't know", "i do not know", "i'm not sure", "i am not sure", "i cannot", "i can't", "as an ai",
              "i'm sorry", "i am sorry", "i'm unable", "i am unable", "no information")  # fmt: skip
