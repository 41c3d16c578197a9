"""Encoders of the Hugging Face library, from a folder on this machine."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class HuggingFace(nn.Module):
    """A sequence classifier of `transformers` in a folder: its `config.json` and, if they are there, its weights.

    Nothing is downloaded, and no code from the folder is run. The tokens are those of `data=text data.tokenizer=` the same folder.

    Args:
        num_classes: Number of logits.
        vocabulary_size: Numbers that a token can have; told by the data.
        path: The folder.
        pretrained: Begin with the folder's weights; a head that they lack is new. False: all weights are new.

    Raises:
        ValueError: If `transformers` is not installed, the folder cannot be read, or its model has fewer tokens than the data.
    """

    def __init__(self, num_classes: int, vocabulary_size: int, *, path: str, pretrained: bool = True) -> None:
        super().__init__()
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("model=huggingface takes transformers, not installed here: pip install transformers")
        import transformers  # pyright: ignore[reportMissingImports]  # an optional extra, whose import takes seconds

        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.path={path}: there is no config.json in it; name the folder of a Hugging Face model")
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, num_labels=num_classes, **local)
            # On the meta device the weights come from a checkpoint.
            weights = pretrained and torch.get_default_device().type != "meta" and any(folder.glob("*.safetensors"))
            kind = transformers.AutoModelForSequenceClassification
            self.model: Any = (
                kind.from_pretrained(folder, config=config, use_safetensors=True, ignore_mismatched_sizes=True, **local)  # the head
                if weights
                else kind.from_config(config, trust_remote_code=False)
            )
        except Exception as error:  # the library raises what it likes
            raise ValueError(f"model.path={path} cannot be used: {' '.join(str(error).split())[:200]}") from error
        if config.vocab_size < vocabulary_size:
            raise ValueError(
                f"model.path={path} has {config.vocab_size} tokens, the data {vocabulary_size}: use its tokenizer, data.tokenizer={path}"
            )
        self.padding: int = config.pad_token_id or 0

    @property
    def perturbed(self) -> nn.Module:
        """The layer whose output is perturbed: the embedding of the tokens."""
        return self.model.get_input_embeddings()

    def mask(self, ids: Tensor) -> Tensor:
        """Where there are tokens, bool (N, T)."""
        return ids != self.padding

    def forward(self, ids: Tensor) -> Tensor:
        """Map numbers of tokens, integers (N, T), to logits of shape (N, num_classes)."""
        return self.model(input_ids=ids.long(), attention_mask=self.mask(ids).long()).logits
