"""How a stream that broke goes on elsewhere, token-exact: what replicas tell, and are told.

1. A router that could resume a stream says so with the request: `RESUMABLE_FIELD: 1`.
2. A replica that can go on from token ids tells them inside each event, in a comment line before
   its data, which clients skip (WHATWG HTML, "Server-sent events"):

       : tokens 262 1450
       data: {"id": "chatcmpl-…", "choices": …}

   They are all the tokens generated since the event before, also those whose text is still held
   back. Every answer of such a replica, of any path, has the field `RESUMES_FIELD: tokens`.
3. When the stream has broken, the router sends the body again, elsewhere, with `RESUME_KEY` in it:
   the token ids told so far. The prompt is that of the body, and so is `max_tokens`: what was said
   counts against it, and as completion tokens in the usage. The events begin after the last one
   told: same id, no opening event, only text that was not told yet. When the answer had ended with
   these tokens, its last event comes at once.
"""

import msgspec

RESUMABLE_FIELD = b"x-warmroute-resumable"
RESUMES_FIELD = b"x-warmroute-resumes"
RESUMES_BY_TOKENS = b"tokens"
RESUME_KEY = "warmroute_resume"

_TOKENS = b": tokens "


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """The value of `RESUME_KEY`.

    token_ids: What was generated and told, in order.
    id, created: Of the answer that broke; its events go on under them.
    """

    token_ids: list[int]
    id: str
    created: int


def tokens_line(token_ids: list[int]) -> bytes:
    """The comment line for an event that tells these tokens; empty for none."""
    if not token_ids:
        return b""
    return _TOKENS + " ".join(map(str, token_ids)).encode() + b"\n"


def told_tokens(events: bytes) -> list[int]:
    """The token ids told in whole events, in order.

    Raises:
        ValueError: a comment that begins like ours holds something else than token ids.
    """
    token_ids: list[int] = []
    for line in events.split(b"\n"):
        if line.startswith(_TOKENS):
            token_ids.extend(map(int, line[len(_TOKENS) :].split()))
    return token_ids
