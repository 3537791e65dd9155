"""The short cuts of our sandbox allow and answer what Jinja's own sandbox does."""

from typing import Any

import jinja2
import pytest
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from prompt.sandbox import ChatSandbox

OURS, JINJAS = ChatSandbox(), ImmutableSandboxedEnvironment()


class Text(str):
    role = "of a subclass"


def looping() -> LoopContext:
    loop = LoopContext([1, 2, 3], Undefined)
    next(loop)
    return loop


OBJECTS: dict[str, Any] = {
    "str": "a {0.__class__}",
    "str subclass": Text("a"),
    "dict": {"role": "user", "items": 1, "_private": 2, "format": "x"},
    "list": ["a"],
    "int": 1,
    "none": None,
    "function": looping,
    "method": "a".upper,
    "type": str,
    "loop": looping(),
    "namespace": Namespace(role="user", _private=1, format="a".format, method="a".upper),
    "undefined": Undefined(name="x"),
}
NAMES = sorted(
    {name for one in OBJECTS.values() for name in dir(type(one))}
    | {"role", "missing", "mro", "__code__", "_private", "content", "method", "__attrs"}
)


def outcome(environment: jinja2.Environment, obj: Any, name: str) -> str:
    try:
        value = environment.getattr(obj, name)
    except (jinja2.TemplateError, AttributeError) as error:
        return f"{type(error).__name__} {error}"
    if isinstance(value, Undefined):
        return f"undefined: {value._undefined_message} {value._undefined_exception.__name__}"
    # Wrapped functions are new ones at each access; where they come from tells them.
    return f"{type(value).__name__} {getattr(value, '__qualname__', value)!r}"


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_attribute_is_what_jinjas_sandbox_says(kind: str) -> None:
    for name in NAMES:
        ours, jinjas = outcome(OURS, OBJECTS[kind], name), outcome(JINJAS, OBJECTS[kind], name)
        if "object at 0x" not in ours:
            assert ours == jinjas, name
        assert ours.split()[0] == jinjas.split()[0], name


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{0.__class__.__mro__}'.format(x) }}",
        "{{ '{a.__class__}'.format_map({'a': x}) }}",
        "{% set ns = namespace(f='{0.__class__}'.format) %}{{ ns.f(x) }}",
        "{{ ('{0.__class__}' | attr('format'))(x) }}",
        "{{ '{0.__class__}'['format'](x) }}",
        "{{ x.__class__ }}",
        "{{ {'a': 1}.update({'b': 2}) }}",
        "{{ messages.append(1) }}",
        "{{ ''.join.__self__ }}",
        "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
        "{% for y in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    ],
)
def test_what_breaks_out_of_sandboxes_does_not_of_this(source: str) -> None:
    ours, jinjas = (rendered(one, source) for one in (OURS, JINJAS))
    assert ours == jinjas
    assert ours == "" or "SecurityError" in ours or "UndefinedError" in ours


def rendered(environment: jinja2.Environment, source: str) -> str:
    try:
        return environment.from_string(source).render(x="a", messages=[1])
    except jinja2.TemplateError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ' a '.strip() }}|{{ 'a,b'.split(',') }}|{{ 'ab'.startswith('a') }}",
        "{{ ','.join(messages) }}|{{ 'a-b'.replace('-', '+', 1) }}|{{ 'é'.upper() }}",
        "{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ m }}"
        "{{ loop.cycle('x', 'y') }}{{ loop.previtem }}{% endfor %}",
        "{% set ns = namespace(a=1, b='{}'.format) %}{% set ns.a = 'x'.upper %}"
        "{{ ns.a() }}{{ ns.b(1) }}{{ ns.missing }}",
        "{{ d.role }}{{ d.items() | list }}{{ d.missing is defined }}{{ d.get('role') }}",
    ],
)
def test_templates_render_as_in_jinjas_sandbox(source: str) -> None:
    values = {"messages": ["a", "b"], "d": {"role": "user", "items": 1}}
    ours, jinjas = (one.from_string(source).render(values) for one in (OURS, JINJAS))
    assert ours == jinjas
