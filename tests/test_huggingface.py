"""Regularizers in Hugging Face's Trainer, on models made from small configurations."""

import pytest
import torch

from vat import VAT
from vat.huggingface import add_regularizers
from vat.step import Key, Step

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**options):
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY, num_labels=3, **(QUIET | options)))


def texts(n=8):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(n):
        length = 3 + i % 4
        ids = torch.zeros(8, dtype=torch.long)
        ids[:length] = torch.randint(1, 30, (length,), generator=generator)
        rows.append({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor(i % 3)})
    return rows


def trained(model, folder, *regularizers, at=None, output_mask=None, data=None, **options):
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0}
    settings |= {"lr_scheduler_type": "constant", "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    args = transformers.TrainingArguments(output_dir=str(folder), logging_steps=1, seed=5, **(settings | options))
    trainer = transformers.Trainer(model, args, train_dataset=data or texts())
    batches, plain = [], trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, *a, **k: batches.append(inputs) or plain(model, inputs, *a, **k)
    if regularizers:
        add_regularizers(trainer, *regularizers, at=at, output_mask=output_mask)
    trainer.train()
    return trainer, batches


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_gets_exactly_the_term_on_the_embeddings_without_padding(tmp_path, accumulate):
    options = {"gradient_accumulation_steps": accumulate}
    plain, regularized = bert(), bert()
    trained(plain, tmp_path, **options)
    trainer, batches = trained(regularized, tmp_path, VAT(eps=0.7), **options)
    model = bert().train()
    for number, batch in enumerate(batches):
        call = {name: value for name, value in batch.items() if name != "labels"}
        step = Step(model, call, at=model.get_input_embeddings(), mask=call["attention_mask"], key=Key(5, number))
        (VAT(eps=0.7).term(step) / accumulate).backward()
    assert len(batches) == accumulate
    for a, b, p in zip(plain.parameters(), regularized.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a - b, p.grad, rtol=1e-3, atol=1e-5)
    assert any("vat" in entry and entry["vat"] > 0 for entry in trainer.state.log_history)


def test_evaluation_does_not_change_and_schedules_follow_the_run(tmp_path):
    model, vat = bert(), VAT(eps=0.7, ramp_up=10)
    trainer, _ = trained(model, tmp_path, vat, max_steps=3, learning_rate=0.01, eval_strategy="no")
    assert vat.num_updates == 3
    reference = transformers.Trainer(model, trainer.args).evaluate(texts())["eval_loss"]
    assert trainer.evaluate(texts())["eval_loss"] == reference


def test_images_are_perturbed_directly(tmp_path):
    torch.manual_seed(0)
    small = {name: value for name, value in TINY.items() if name != "vocab_size"}
    config = transformers.ViTConfig(**small, image_size=8, patch_size=4, num_labels=3, **QUIET)
    model = transformers.ViTForImageClassification(config)
    data = [{"pixel_values": torch.randn(3, 8, 8), "labels": torch.tensor(i % 3)} for i in range(8)]
    trainer, _ = trained(model, tmp_path, VAT(eps=1.0), data=data)
    assert any("vat" in entry for entry in trainer.state.log_history)


def test_a_decoder_reads_its_labels_and_only_its_real_outputs_count(tmp_path):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}

    def t5():
        torch.manual_seed(0)
        return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=30, decoder_start_token_id=0, **sizes))

    rows = [{**row, "labels": torch.tensor([4, 5, 1, 6, 7, -100, -100, -100])} for row in texts()]  # as many as the inputs
    with pytest.raises(ValueError, match=r"is not called in a pass .* as encoder.embed_tokens, decoder.embed_tokens"):
        trained(t5(), tmp_path, VAT(eps=0.7), data=rows)
    with pytest.raises(ValueError, match="the outputs are a decoder's"):
        trained(t5(), tmp_path, VAT(eps=0.7), data=rows, at="encoder.embed_tokens")
    plain, regularized = t5(), t5()
    trained(plain, tmp_path, data=rows)
    options = {"at": "encoder.embed_tokens", "output_mask": lambda batch: batch["labels"] != -100}
    _, (batch,) = trained(regularized, tmp_path, VAT(eps=0.7), data=rows, **options)
    model = t5().train()
    at, known = model.encoder.embed_tokens, batch["labels"] != -100
    VAT(eps=0.7).term(Step(model, batch, at=at, mask=batch["attention_mask"], output_mask=known, key=Key(5))).backward()
    for a, b, p in zip(plain.parameters(), regularized.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a - b, p.grad, rtol=1e-3, atol=1e-5)


def test_missing_layers_and_inputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got no regularizer: pass one"):
        add_regularizers(transformers.Trainer(bert(), transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[])))
    with pytest.raises(ValueError, match="at='body' is not a layer of BertForSequenceClassification: choose a layer, or one of its inputs"):
        trained(bert(), tmp_path, VAT(1.0), at="body")


MODELS = {
    "bert": lambda: bert(),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(dim=16, hidden_dim=16, n_layers=2, n_heads=2, vocab_size=30, num_labels=3)
    ),
    "gpt2": lambda: transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, num_labels=3, pad_token_id=0)
    ),
    "bart": lambda: transformers.BartForSequenceClassification(
        transformers.BartConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=30, num_labels=3, eos_token_id=2, pad_token_id=0,
        )
    ),
    "roberta, checkpointed": lambda: checkpointed(),
}  # fmt: skip


def checkpointed():
    config = transformers.RobertaConfig(**TINY, num_labels=3, pad_token_id=0)
    model = transformers.RobertaForSequenceClassification(config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_no_models_penalty(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    values = []
    for padded in (8, 20):
        ids = torch.zeros(4, padded, dtype=torch.long)
        ids[:, :8] = torch.stack([row["input_ids"] for row in texts(4)])
        if name == "bart":
            ids = torch.where((ids == 1) | (ids == 2), 3, ids)
            ids[torch.arange(4), (ids > 0).sum(1) - 1] = 2  # one end of sentence in each
        batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
        at = model.model.encoder.embed_tokens if name == "bart" else model.get_input_embeddings()
        step = Step(model, batch, at=at, mask=batch["attention_mask"], key=Key(3))
        penalty = VAT(1.0).penalty(step)
        penalty.backward()
        values.append(penalty.item())
    assert values[0] > 0
    assert values[1] == pytest.approx(values[0], rel=1e-3)


def test_embeddings_instead_of_ids_give_an_error_that_says_how_to_perturb_them():
    with pytest.raises((TypeError, ValueError)) as raised:
        VAT(1.0)(bert(), torch.randn(2, 4, 16))
    assert "at=model.get_input_embeddings()" in "".join(raised.value.__notes__)
