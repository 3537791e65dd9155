"""The chaos test's model: what it says best leads by more than floating point can lose."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from loadtests.chaos.cases import pool
from loadtests.chaos.tiny_model import make_tiny_model
from replica.load_runner import load_runner
from tests.support.tiny_models import Driver

# Nearest lead over largest error, at least.
MARGIN = 10


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    make_tiny_model(made)
    return made


def test_every_token_of_the_pool_leads_by_far_more_than_float32_loses(directory: Path) -> None:
    """Decoded token by token in float32, and looked at as one prefill in float64."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    exact, rounded = (
        LlamaForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        for dtype in (torch.float64, torch.float32)
    )
    driver = Driver(load_runner(directory, dtype="float32", num_blocks=2000))
    leads, errors = [], []
    for case in pool("tiny", 40):
        prompt = prompt_ids(tokenizer, case.body)
        (said,) = driver.generate([prompt], case.body["max_tokens"])
        ids = torch.tensor([[*prompt, *said]])
        with torch.no_grad():
            logits = exact(ids).logits[0, len(prompt) - 1 : -1]
            others = rounded(ids).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2, dim=-1)
        assert best.indices[:, 0].tolist() == said
        leads.append((best.values[:, 0] - best.values[:, 1]).min().item())
        errors.append((logits - others).abs().max().item())
    assert min(leads) > MARGIN * max(errors)


def prompt_ids(tokenizer: Any, body: dict[str, Any]) -> list[int]:
    text = body.get("prompt") or tokenizer.apply_chat_template(
        body["messages"], add_generation_prompt=True, tokenize=False
    )
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def test_the_pool_is_the_same_each_time_and_mixes_what_is_asked() -> None:
    cases = pool("tiny", 40)
    assert [one.body for one in cases] == [one.body for one in pool("tiny", 40)]
    bodies = [one.body for one in cases]
    lengths = [one["max_tokens"] for one in bodies]
    assert min(lengths) < 30
    assert max(lengths) > 100
    assert 5 < sum("stop" in one for one in bodies) < 35
    assert sum("messages" in one for one in bodies) == 20
    sent = cases[0].sent(stream=True, usage=True)
    assert sent["stream_options"] == {"include_usage": True}
    assert "stream_options" not in cases[0].sent(stream=False, usage=True)
