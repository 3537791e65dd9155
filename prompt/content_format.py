"""Whether a chat template expects a message's content as a list of parts, or as a string.

It does when it loops over the content of what it finds looping over the messages:

    {% set rest = messages[1:] %}{% for m in rest %}{% for part in m.content | list %}

Source: vLLM `renderers/hf.py` (`_detect_content_format`), which decides by the same rule.
"""

from collections.abc import Iterator

from jinja2 import nodes


def wants_parts(template: nodes.Template) -> bool:
    """Whether `template` loops over the parts of a message's content."""
    lists = {"messages", *_aliases(template, "messages")}
    messages = {
        loop.target.name
        for loop in template.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name)
        and any(_is_part_of(loop.iter, name, None) for name in lists)
    }
    return any(
        _is_part_of(loop.iter, name, "content")
        for loop in template.find_all(nodes.For)
        for name in messages
    )


def _aliases(template: nodes.Template, name: str) -> Iterator[str]:
    """Variables that some assignment makes of `name`, or of one of its aliases."""
    seen, fresh = {name}, [name]
    while fresh:
        source = fresh.pop()
        for one in template.find_all(nodes.Assign):
            target = one.target
            if not isinstance(target, nodes.Name) or target.name in seen:
                continue
            if _is_part_of(one.node, source, None):
                seen.add(target.name)
                fresh.append(target.name)
                yield target.name


def _is_part_of(node: nodes.Node | None, name: str, key: str | None) -> bool:
    """Whether `node` is the variable (its item `key`, if any), sliced, filtered or tested."""
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if key is not None:
        if isinstance(node, nodes.Getattr):
            found = node.attr
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            found = node.arg.value
        else:
            return False
        if found != key:
            return False
        node = node.node
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
