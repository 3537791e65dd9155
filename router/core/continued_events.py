"""Events of a replica that continues a message, made to look like the rest of the stream before.

Their id, time and model become those of the answer that broke; no second opening; usage counts what
was said as completion, not as prompt. The end of the text that was said may have been cut off by a
chat template, if it is blank, and said again: that is left out.
"""

from typing import Any

import msgspec

from protocol import sse
from router.core.said import Said

_MAX_EVENT_BYTES = 32 * 1024 * 1024


class ContinuedEvents:
    """Fed with whole events. What is no JSON object passes as it is."""

    def __init__(self, said: Said, *, chat: bool, only_usage: bool = False) -> None:
        """
        Args:
            said: Read.
            chat: Whether a chat template may have cut off the blanks at its end.
            only_usage: All else has been said before, and is left out; and the usage is right.
        """
        self._id, self._created, self._model = said.id, said.created, said.model
        self._said_tokens = 0 if only_usage else said.kept_events(chat=chat)
        self._only_usage = only_usage
        text = said.text
        self._blanks = text[len(text.rstrip()) :] if chat else ""
        self._parser = sse.EventParser(_MAX_EVENT_BYTES)

    def rewrite(self, events: bytes) -> bytes:
        return b"".join(self._rewritten(data) for data in self._parser.feed(events))

    def _rewritten(self, data: bytes) -> bytes:
        try:
            event = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return sse.frame(data)  # [DONE]
        if not isinstance(event, dict) or "error" in event:
            return sse.frame(data)
        if self._id:
            event |= {"id": self._id, "created": self._created, "model": self._model}
        choices = event.get("choices")
        if isinstance(choices, list) and choices:
            event["choices"] = [one for one in choices if self._keeps(one)]
            if not event["choices"]:
                return b""
        if isinstance(event.get("usage"), dict):
            self._correct(event["usage"])
        return sse.frame(msgspec.json.encode(event))

    def _keeps(self, choice: Any) -> bool:
        """Whether there is anything new in it, once what was said is taken out."""
        if not isinstance(choice, dict):
            return True
        if self._only_usage:
            return False
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return bool(choice.get("text")) or choice.get("finish_reason") is not None
        if self._id:
            delta.pop("role", None)
        content = delta.get("content")
        if isinstance(content, str):
            delta["content"] = content = self._without_blanks(content)
            if not content:
                del delta["content"]
        return any(value for value in delta.values()) or choice.get("finish_reason") is not None

    def _without_blanks(self, content: str) -> str:
        """Takes off the beginning what is left of the blanks said before."""
        while self._blanks and content:
            if content[0] != self._blanks[0]:
                self._blanks = ""
                break
            content, self._blanks = content[1:], self._blanks[1:]
        return content

    def _correct(self, usage: dict[str, Any]) -> None:
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int) or not isinstance(completion, int):
            return
        said = min(self._said_tokens, prompt)
        usage["prompt_tokens"] = prompt - said
        usage["completion_tokens"] = completion + said
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            details["cached_tokens"] = min(details["cached_tokens"], prompt - said)
