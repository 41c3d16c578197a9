"""VAT in the Trainer of Hugging Face's transformers: one line. It perturbs the embeddings. Padding does not count.

python examples/huggingface_trainer.py
"""

import tempfile

import torch
from transformers import (  # pyright: ignore[reportMissingImports]
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from vat import VAT
from vat.huggingface import add_regularizers

GOOD, BAD, OTHER = range(1, 40), range(40, 79), range(79, 200)
torch.set_num_threads(1)  # the fastest for a small network
set_seed(0)


def texts(n: int) -> list[dict[str, torch.Tensor]]:
    """Make `n` sentences of 6 to 12 word ids, padded with 0. Each has three words of one mood."""
    rows = []
    for mood in torch.randint(2, (n,)):
        length = int(torch.randint(6, 13, ()))
        ids = torch.zeros(12, dtype=torch.long)
        ids[:length] = torch.randint(OTHER.start, OTHER.stop, (length,))
        words = BAD if mood else GOOD
        ids[torch.randperm(length)[:3]] = torch.randint(words.start, words.stop, (3,))
        rows.append({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": mood})
    return rows


def error(output) -> dict[str, float]:
    """Share of wrong predictions."""
    return {"error": float((output.predictions.argmax(1) != output.label_ids).mean())}


config = BertConfig(vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
model = BertForSequenceClassification(config)  # or from_pretrained(...)
with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(
        output_dir=folder,
        max_steps=100,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        logging_steps=25,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=texts(200), eval_dataset=texts(500), compute_metrics=error)
    add_regularizers(trainer, VAT(eps=0.5))  # the one line
    trainer.train()
    print(f"test error {100 * trainer.evaluate()['eval_error']:.1f} %")
