"""VAT on the embeddings of a Hugging Face encoder: a radius for each sentence, and padding does not count.

The texts are random words, three of which show one of two moods.

python examples/text_classification.py
"""

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification  # pyright: ignore[reportMissingImports]

from vat import VAT

GOOD, BAD, OTHER = range(1, 40), range(40, 79), range(79, 200)
torch.set_num_threads(1)  # the fastest for a small network
torch.manual_seed(0)


def texts(n: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Make `n` sentences of 6 to 12 word ids, padded with 0, and their moods. Each has three words of its mood."""
    moods = torch.randint(2, (n,))
    ids = torch.zeros(n, 12, dtype=torch.long)
    for row, mood in zip(ids, moods, strict=True):
        length = int(torch.randint(6, 13, ()))
        row[:length] = torch.randint(OTHER.start, OTHER.stop, (length,))
        words = BAD if mood else GOOD
        row[torch.randperm(length)[:3]] = torch.randint(words.start, words.stop, (3,))
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}, moods


config = BertConfig(vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
model = BertForSequenceClassification(config)  # or from_pretrained(...)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
vat = VAT(eps=0.5)  # a radius for each sentence; with per="token" for each word
labeled, moods = texts(200)

for step in range(101):
    batch, _ = texts(32)  # without labels
    supervised = F.cross_entropy(model(**labeled).logits, moods)
    smoothness = vat(model, batch, at=model.get_input_embeddings(), mask=batch["attention_mask"])
    optimizer.zero_grad()
    (supervised + smoothness).backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: cross entropy {supervised.item():.3f}, LDS {smoothness.item():.4f}")

model.eval()
batch, moods = texts(500)
with torch.no_grad():
    error = (model(**batch).logits.argmax(1) != moods).float().mean().item()
print(f"test error {100 * error:.1f} %")
