"""What can go wrong with a model's files or with rendering a conversation.

PromptError
├── ModelFileError   a model path, tokenizer or template that is missing or cannot be read
└── TemplateError    the template refused these messages: the client's fault
"""


class PromptError(Exception):
    pass


class ModelFileError(PromptError):
    pass


class TemplateError(PromptError):
    pass
