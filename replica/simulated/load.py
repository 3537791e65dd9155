"""From the configuration to a simulated device: of the model's files only the tokenizer is read."""

import logging
import re

from prompt.assets import resolve_model_path
from prompt.errors import PromptError
from replica.config import ReplicaConfig
from replica.simulated.answers import Answers
from replica.simulated.runner import SimulatedRunner
from replica.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)

_WORD = re.compile(" [a-z]{2,}")
_WORDS_MIN = 64


def load_simulated(config: ReplicaConfig) -> SimulatedRunner:
    """
    Raises:
        ValueError: the tokenizer is missing or wrong; one line says how.
    """
    simulated, blocks = config.engine.simulated, config.engine.told_blocks
    assert simulated is not None
    assert blocks is not None
    try:
        tokenizer = Tokenizer.load(resolve_model_path(config.model.path))
    except PromptError as error:
        raise ValueError(str(error)) from error
    words = words_of(tokenizer)
    ends = simulated.answer_tokens is not None
    if ends and not tokenizer.eos_token_ids:
        raise ValueError("engine.simulated.answer_tokens: this tokenizer has no token that ends")
    answers = Answers(
        words,
        num_blocks=blocks,
        block_size=config.engine.block_size,
        end=min(tokenizer.eos_token_ids) if ends else None,
        tokens_mean=simulated.answer_tokens,
    )
    _LOG.info(
        "simulated: steps of %s, slowness %g, %d KV blocks of %d tokens, answers of %d words",
        simulated.preset if simulated.timing is None else "the configured timing",
        simulated.slowness,
        blocks,
        config.engine.block_size,
        len(words),
    )
    return SimulatedRunner(
        simulated.step_timing, answers, vocab_size=tokenizer.vocab_size, num_blocks=blocks
    )


def words_of(tokenizer: Tokenizer) -> list[int]:
    """Tokens to answer with: words of lower-case letters, a space before each.

    A text of them has the same tokens when it comes back in a prompt, so that it is found in the
    cache. A vocabulary of few such words gives all its tokens that have a text.

    Raises:
        ValueError: it has none.
    """
    texts = {
        token: text
        for token in range(tokenizer.vocab_size)
        if token not in tokenizer.eos_token_ids and (text := tokenizer.detokenizer().push(token))
    }
    words = [
        token
        for token, text in texts.items()
        if _WORD.fullmatch(text) and tokenizer.encode(text, add_special_tokens=False) == [token]
    ]
    if len(words) >= _WORDS_MIN:
        return words
    if not texts:
        raise ValueError("model.path: no token of this tokenizer has a text")
    return list(texts)
