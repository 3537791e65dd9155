"""A model from a Hugging Face directory through router and replica: template, tokens, weights."""

from pathlib import Path

import pytest
import yaml

from tests.support.stack import Stack
from tests.support.tiny_models import save_tiny_model

pytestmark = pytest.mark.processes


def test_a_tiny_model_from_a_directory_is_served_and_its_cache_predicted(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    save_tiny_model(directory)
    save_tokenizer(directory)
    stack = Stack(tmp_path, ["r0"])
    stack.config["router"]["models"][0]["tokenizer"] = str(directory)
    stack.config["replicas"][0]["model"] |= {"path": str(directory), "max_model_len": 512}
    stack.config_path.write_text(yaml.safe_dump(stack.config))
    try:
        stack.start_all()
        messages = [{"role": "user", "content": "the cat sat on the mat, café 猫. " * 4}]
        for turn in range(3):
            response, body = stack.chat(messages, max_tokens=8, ignore_eos=True)
            assert response.status_code == 200, body
            cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert int(response.headers["x-warmroute-matched-tokens"]) == cached
            assert (cached > 0) == (turn > 0)
    finally:
        stack.stop()


def save_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer of 512 tokens with a chat template, as models ship it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, café 猫. user assistant"] * 9, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (directory / "chat_template.jinja").write_text(template)
