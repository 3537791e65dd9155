"""The two shapes an answer has: chat completion and plain completion."""

from typing import Protocol

from protocol.openai import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatResponse,
    CompletionChoice,
    CompletionResponse,
    Delta,
    StopReason,
    Usage,
)


class Kind(Protocol):
    """Makes the parts of one answer; each is a struct to encode as JSON."""

    def whole(self, text: str, finish: StopReason, usage: Usage) -> object: ...

    def opening(self) -> object | None:
        """The chunk before the first text, if this kind has one."""
        ...

    def chunk(self, text: str, finish: StopReason | None, usage: Usage | None) -> object: ...

    def usage_chunk(self, usage: Usage) -> object: ...


class Chat:
    def __init__(self, answer_id: str, created: int, model: str) -> None:
        self._id, self._created, self._model = answer_id, created, model

    def whole(self, text: str, finish: StopReason, usage: Usage) -> object:
        choice = ChatChoice(index=0, message=AssistantMessage(content=text), finish_reason=finish)
        return ChatResponse(
            id=self._id, created=self._created, model=self._model, choices=[choice], usage=usage
        )

    def opening(self) -> object | None:
        delta = Delta(role="assistant", content="")
        return self._chunk([ChatChunkChoice(index=0, delta=delta)], None)

    def chunk(self, text: str, finish: StopReason | None, usage: Usage | None) -> object:
        delta = Delta(content=text) if text else Delta()
        return self._chunk([ChatChunkChoice(index=0, delta=delta, finish_reason=finish)], usage)

    def usage_chunk(self, usage: Usage) -> object:
        return self._chunk([], usage)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None) -> ChatChunk:
        return ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


class Completion:
    def __init__(self, answer_id: str, created: int, model: str) -> None:
        self._id, self._created, self._model = answer_id, created, model

    def whole(self, text: str, finish: StopReason, usage: Usage) -> object:
        return self.chunk(text, finish, usage)

    def opening(self) -> object | None:
        return None

    def chunk(self, text: str, finish: StopReason | None, usage: Usage | None) -> object:
        return self._response([CompletionChoice(index=0, text=text, finish_reason=finish)], usage)

    def usage_chunk(self, usage: Usage) -> object:
        return self._response([], usage)

    def _response(self, choices: list[CompletionChoice], usage: Usage | None) -> CompletionResponse:
        return CompletionResponse(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )
