"""Workloads of sessions whose prompts grow: chats of people, and agents that call tools."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from loadtests.sim.workloads.contents import ContentSpace, total_tokens
from loadtests.sim.workloads.draws import Popular, geometric, length, length_mean, wait, wait_mean
from loadtests.sim.workloads.workload import Session, Turn, Workload, parameter


@dataclass(frozen=True, kw_only=True)
class _Growing(Workload):
    """Each turn's prompt: a shared instruction, all that was said, and what is new.

    turn 1   instruction  new₁
    turn 2   instruction  new₁  answer₁  new₂
    turn 3   instruction  new₁  answer₁  new₂  answer₂  new₃
    """

    turns: float
    instructions: int
    instruction_tokens: float
    zipf_exponent: float
    first_tokens: float
    new_tokens: float
    answer_tokens: float
    pause_s: float
    pause_sigma: float
    token_s: float
    context_tokens_max: int
    summary_tokens: float

    @property
    def turns_mean(self) -> float:
        return self.turns

    @property
    def session_s(self) -> float:
        answer_s = length_mean(self.answer_tokens) * self.token_s
        return (self.turns - 1) * (answer_s + wait_mean(self.pause_s, self.pause_sigma))

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        instructions = Popular(
            [space.new(length(rng, self.instruction_tokens)) for _ in range(self.instructions)],
            self.zipf_exponent,
        )
        while True:
            yield Session(turns=self._turns(rng, space, instructions.choose(rng)), has_id=True)

    def _turns(self, rng: Random, space: ContentSpace, instruction: range) -> Iterator[Turn]:
        said: list[range] = []
        wait_s = 0.0
        for turn in range(geometric(rng, self.turns)):
            new = space.new(length(rng, self.new_tokens if turn else self.first_tokens))
            answer = space.new(length(rng, self.answer_tokens))
            full = total_tokens((instruction, *said, new, answer)) > self.context_tokens_max
            if said and full:
                said = [space.new(length(rng, self.summary_tokens))]
            yield Turn(wait_s, (instruction, *said, new), len(answer), answer)
            said += (new, answer)
            wait_s = len(answer) * self.token_s + wait(rng, self.pause_s, self.pause_sigma)


@dataclass(frozen=True, kw_only=True)
class Chat(_Growing):
    """People chat: turns with time to think between them, each with all that was said before."""

    turns: float = parameter(
        3.5,
        "Mean turns of a conversation, geometric (LMSYS-Chat-1M has 2.0, WildChat 2.5; assistants"
        " for work have more).",
        least=1,
    )
    instructions: int = parameter(20, "How many system prompts there are.", least=1)
    instruction_tokens: float = parameter(
        400, "Median of a system prompt: a page of instructions.", least=1
    )
    zipf_exponent: float = parameter(1.0, "How unequally popular system prompts are.", least=0)
    first_tokens: float = parameter(
        150, "Median of the first question (ShareGPT's mean is 161: vLLM's paper).", least=1
    )
    new_tokens: float = parameter(
        50, "Median of a later question (LMSYS-Chat-1M's mean is 70).", least=1
    )
    answer_tokens: float = parameter(
        200, "Median of an answer (means: LMSYS-Chat-1M 215, ShareGPT 338).", least=1
    )
    pause_s: float = parameter(
        20.0, "Median of reading and writing between an answer and the next turn.", least=0
    )
    pause_sigma: float = parameter(1.0, "Of the pause's logarithm.", least=0)
    token_s: float = parameter(
        0.02, "How long the client waits for each token of an answer: 50 a second.", least=0
    )
    context_tokens_max: int = parameter(
        32_768, "Where the history would grow beyond, a summary takes its place.", least=1
    )
    summary_tokens: float = parameter(500, "Median of a summary.", least=1)


@dataclass(frozen=True, kw_only=True)
class Agents(_Growing):
    """Agents in a loop: many turns, short waits for tools, a long shared prefix, much context."""

    turns: float = parameter(
        20,
        "Mean calls of the model in a task, geometric (SWE-agent's paper has 12 to 21 steps,"
        " Manus speaks of 50 tool calls).",
        least=1,
    )
    instructions: int = parameter(5, "How many agents there are, each with tools.", least=1)
    instruction_tokens: float = parameter(
        6_000, "Median of system prompt and tool definitions; coding agents' have 10,000.", least=1
    )
    zipf_exponent: float = parameter(1.0, "How unequally popular agents are.", least=0)
    first_tokens: float = parameter(
        300, "Median of the task (issues of SWE-bench: 195 words on average).", least=1
    )
    new_tokens: float = parameter(500, "Median of what a tool returns.", least=1)
    answer_tokens: float = parameter(
        120, "Median of a thought and a tool call (Manus: a hundredth of the prompt).", least=1
    )
    pause_s: float = parameter(1.0, "Median of a tool's run.", least=0)
    pause_sigma: float = parameter(1.2, "Of its logarithm: tests run minutes.", least=0)
    token_s: float = parameter(
        0.02, "How long the agent waits for each token of an answer: 50 a second.", least=0
    )
    context_tokens_max: int = parameter(
        128_000, "Where the history would grow beyond, a summary takes its place.", least=1
    )
    summary_tokens: float = parameter(2_000, "Median of a summary.", least=1)
