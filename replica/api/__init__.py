"""The API process: HTTP in OpenAI's shape on one side, the engine's messages on the other."""
