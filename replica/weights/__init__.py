"""Reading a model's weights from its files, by Hugging Face's names."""
