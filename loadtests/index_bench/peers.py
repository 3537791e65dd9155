"""Makes the environment that Dynamo's index runs in: `python -m loadtests.index_bench.peers`.

Its packages are its own, beside the few that reading a data set needs; it never touches ours.
"""

from importlib.metadata import version

from loadtests.peer_environment import PeerEnvironment


def dynamo() -> PeerEnvironment:
    shared = [f"{name}=={version(name)}" for name in ("msgspec", "tokenizers")]
    return PeerEnvironment(
        name="dynamo", packages=("ai-dynamo-runtime==1.6.1", *shared), module="dynamo.llm"
    )


if __name__ == "__main__":
    dynamo().install()
    print(dynamo().python)
