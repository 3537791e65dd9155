"""What can be wrong with a model's files, beyond what prompt.errors names.

prompt.errors.ModelFileError   a file that is missing or cannot be read
├── UnsupportedModel           a configuration that asks for something we do not compute
├── WrongTensor                a weight that is missing, unknown or of the wrong shape
└── UnsupportedTokenizer       a tokenizer we cannot build
"""

from prompt.errors import ModelFileError


class UnsupportedModel(ModelFileError):
    pass


class WrongTensor(ModelFileError):
    pass


class UnsupportedTokenizer(ModelFileError):
    pass
