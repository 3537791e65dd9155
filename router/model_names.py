"""Which model a client means: by name, by alias, or by the longest alias prefix that fits."""

from collections.abc import Sequence

import pygtrie

from protocol.errors import BadRequest, ModelNotFound
from router.config import ModelConfig


class ModelNames:
    """Names and aliases of the configured models."""

    def __init__(self, models: Sequence[ModelConfig]) -> None:
        self.listed = [
            name
            for model in models
            for name in (model.name, *(alias for alias in model.aliases if alias[-1] != "*"))
        ]
        self._models = [model.name for model in models]
        self._exact = {name: m.name for m in models for name in (m.name, *m.aliases)}
        self._prefixes: pygtrie.CharTrie = pygtrie.CharTrie()
        for model in models:
            for alias in model.aliases:
                if alias.endswith("*"):
                    self._prefixes[alias[:-1]] = model.name

    def resolve(self, name: str | None) -> str:
        """The configured model that `name` stands for.

        Raises:
            ModelNotFound: no model has this name; the message lists those there are.
            BadRequest: no name was given and there are several models.
        """
        if not name:
            if len(self._models) == 1:
                return self._models[0]
            raise BadRequest(f"model is required, one of: {self._names()}", param="model")
        found = self._exact.get(name)
        if found is None:
            longest = self._prefixes.longest_prefix(name)
            found = longest.value if longest else None  # what stands for no match has no value
        if found is None:
            raise ModelNotFound(
                f"the model {name!r} does not exist; there are: {self._names()}", param="model"
            )
        return found

    def _names(self) -> str:
        return ", ".join(self.listed)
