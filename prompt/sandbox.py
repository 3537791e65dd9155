"""Jinja's sandbox, with short cuts for what chat templates do to every message.

Templates come with a model's files, so they are not trusted. Jinja asks of every attribute whether
it is safe, by some ten `isinstance`; `message.role` even looks for a dict's attribute first and
fails. For plain strings, dicts and Jinja's own loops and namespaces the answer depends on nothing
but type and name, so it is known beforehand; all else takes Jinja's way. A test compares both.

Source: Jinja 3.1 `sandbox.py` (`getattr`, `is_safe_attribute`, `wrap_str_format`, `call`).
"""

from types import BuiltinMethodType
from typing import Any

from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.utils import Namespace

_DICT_ATTRIBUTES = frozenset(dir(dict))
# Neither private nor wrapped (`format`), and none changes the string: strings are constant.
_STR_METHODS = frozenset(
    name for name in dir(str) if not name.startswith("_") and name not in ("format", "format_map")
)
_LOOP_NUMBERS = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})
# Not methods of anything, and so never to be wrapped or refused.
_PLAIN = frozenset({str, int, float, bool, type(None), dict, list})


class ChatSandbox(ImmutableSandboxedEnvironment):
    """Allows and answers exactly what `ImmutableSandboxedEnvironment` does."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict:
            if attribute not in _DICT_ATTRIBUTES:
                try:
                    return obj[attribute]
                except KeyError:
                    return self.undefined(obj=obj, name=attribute)
        elif kind is str:
            if attribute in _STR_METHODS:
                return getattr(obj, attribute)
        elif kind is LoopContext:
            if attribute in _LOOP_NUMBERS:
                return getattr(obj, attribute)
        elif kind is Namespace and not attribute.startswith("_"):
            value = getattr(obj, attribute, self)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # A string's method: safe to call, and not asking for the context.
        if (
            type(__obj) is BuiltinMethodType
            and type(__obj.__self__) is str
            and __obj.__name__ in _STR_METHODS
            and __obj.__name__ != "join"  # may run a generator
            and kwargs.keys() <= {"_loop_vars", "_block_vars"}
        ):
            return __obj(*args)
        return SandboxedEnvironment.call(__self, __context, __obj, *args, **kwargs)
