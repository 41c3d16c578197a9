"""Encoders of the Hugging Face library, from a local folder."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class HuggingFace(nn.Module):
    """A sequence classifier of `transformers` from a folder with its `config.json` and, optionally, its weights.

    It downloads nothing and runs no code from the folder. The data must have the same tokens: give the same folder as `data=text
    data.tokenizer=folder`.

    Args:
        num_classes: Number of logits.
        vocabulary_size: Number of different tokens. The data set gives it.
        path: Path of the folder.
        pretrained: Whether to start with the folder's weights. If they have no fitting head, the head is new. False: all weights are new.

    Raises:
        ValueError: If `transformers` is not installed, the folder cannot be read, or its model has fewer tokens than the data.
    """

    def __init__(self, num_classes: int, vocabulary_size: int, *, path: str, pretrained: bool = True) -> None:
        super().__init__()
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("model=huggingface needs the package transformers, which is not installed: pip install transformers")
        import transformers  # pyright: ignore[reportMissingImports]  # an optional extra, whose import takes seconds

        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.path={path} contains no config.json: give the folder of a Hugging Face model")
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, num_labels=num_classes, **local)
            # On the meta device the folder's weights are not read, because a checkpoint replaces them.
            weights = pretrained and torch.get_default_device().type != "meta" and any(folder.glob("*.safetensors"))
            kind = transformers.AutoModelForSequenceClassification
            self.model: Any = (
                kind.from_pretrained(folder, config=config, use_safetensors=True, ignore_mismatched_sizes=True, **local)  # a new head
                if weights
                else kind.from_config(config, trust_remote_code=False)
            )
        except Exception as error:  # the library documents no exception types
            raise ValueError(f"model.path={path} cannot be used: {' '.join(str(error).split())[:200]}") from error
        if config.vocab_size < vocabulary_size:
            raise ValueError(
                f"model.path={path} has {config.vocab_size} tokens, but the data has {vocabulary_size}: set data.tokenizer={path}"
            )
        self.padding: int = config.pad_token_id or 0

    @property
    def perturbed(self) -> nn.Module:
        """Layer whose output a regularizer perturbs: the embedding of the tokens."""
        return self.model.get_input_embeddings()

    def mask(self, ids: Tensor) -> Tensor:
        """Mask of the tokens without the padding, bool (N, T)."""
        return ids != self.padding

    def forward(self, ids: Tensor) -> Tensor:
        """Map token numbers, integers (N, T), to logits of shape (N, num_classes)."""
        return self.model(input_ids=ids.long(), attention_mask=self.mask(ids).long()).logits
