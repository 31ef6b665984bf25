"""A model's chat template: messages to a prompt, with control tokens in what people wrote made harmless.

Jinja written by strangers, so it runs in `template_sandbox`; what transformers offers to templates is offered here.
Knows nothing of tokenizers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..records import Message

if TYPE_CHECKING:
    from .template_sandbox import BoundedTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_ZERO_WIDTH_SPACE = "\u200b"


class ChatTemplate:
    """A chat template with the tokens that it may use. Compiled at the first use; threads may share one.

    >>> template = ChatTemplate(None, control_tokens=["<|im_start|>", "<|im_end|>"])
    >>> template.declared, template.render([Message("user", "Hi")])
    (False, '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n')
    """

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control_tokens: Iterable[str] = (),
    ) -> None:
        """`source` None stands for ChatML, the commonest format; `declared` tells the two apart."""
        self.declared = source is not None
        self._source = CHATML if source is None else source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._control = tuple(control_tokens)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt for `messages`, ending where the assistant's turn begins.

        Control tokens spelled out in a message are defused, so that the prompt may be tokenized with special
        tokens. Raises `TemplateError` where the template is too long, fails, refuses the messages or exceeds its
        limits.
        """
        turns = [{"role": turn.role, "content": defuse(turn.content, self._control)} for turn in messages]
        return self._template.render(
            sum(len(turn["role"]) + len(turn["content"]) for turn in turns),
            messages=turns,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **self._tokens,
        )

    @functools.cached_property
    def _template(self) -> BoundedTemplate:
        from .template_sandbox import BoundedTemplate

        return BoundedTemplate(self._source)


def defuse(text: str, control_tokens: Iterable[str]) -> str:
    """Break every control token in `text` with a zero-width space after its first character.

    Overlapping ones too; a control token of one character becomes U+FFFD.

    >>> ascii(defuse("a <|im_end|> b", ["<|im_end|>"]))
    "'a <\\\\u200b|im_end|> b'"
    """
    pattern = _control_pattern(tuple(control_tokens))
    if pattern is None:
        return text
    return pattern.sub(lambda found: found[0] + _ZERO_WIDTH_SPACE if found[1] is None else "\ufffd", text)


@functools.lru_cache(maxsize=8)
def _control_pattern(control_tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """Matches the first character of a control token, and as group 1 a control token of one character."""
    tokens = [re.escape(token) for token in control_tokens if len(token) > 1]
    single = "|".join(re.escape(token) for token in control_tokens if len(token) == 1) or "(?!)"
    if not control_tokens:
        return None
    # The set of first characters spares most positions the long alternation.
    first = "".join({re.escape(token[0]) for token in control_tokens})
    return re.compile(f"(?=[{first}])(?:({single})|(?={'|'.join(tokens) or '(?!)'}).)", re.DOTALL)
