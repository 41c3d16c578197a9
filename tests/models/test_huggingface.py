"""A tiny encoder that the test makes, its folder, and a run on it. Without `transformers` only the error is tested."""

import importlib.util

import pytest
import torch

from vat import VAT
from vat.data.files.tokens import read_tokenizer
from vat.models import HuggingFace

installed = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "film", "great", "dull", "so"]


@pytest.fixture
def folder(tmp_path):
    """A BERT of two layers, and a tokenizer of nine words."""
    import tokenizers
    import transformers

    path = tmp_path / "encoder"
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}
    config = transformers.BertConfig(vocab_size=len(WORDS), pad_token_id=0, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    made.save(str(path / "tokenizer.json"))
    return path


@installed
def test_the_term_is_that_of_inputs_embeds(folder):
    """The library accepts embeddings instead of tokens: an independent way to perturb them."""
    network = HuggingFace(3, len(WORDS), path=str(folder)).eval()
    ids = torch.tensor([[2, 4, 5, 3, 0], [2, 6, 3, 0, 0]], dtype=torch.int32)
    mask, embed = network.mask(ids), network.perturbed
    x = embed(ids.long()).detach().requires_grad_()
    logits = network.model(inputs_embeds=x, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits, network(ids))
    top = logits.topk(2, 1).values
    (gradient,) = torch.autograd.grad((top[:, 1] - top[:, 0]).sum(), x)
    gradient = gradient * mask.unsqueeze(2)
    r = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
    moved = network.model(inputs_embeds=x + r, attention_mask=mask.long()).logits
    p = logits.softmax(1)
    expected = (p * (p.log() - moved.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(VAT(1.0, direction="margin")(network, ids), expected, rtol=1e-3, atol=1e-7)


@installed
def test_the_weights_of_the_folder_are_the_start_and_the_head_fits_the_classes(folder):
    one, other, new = (HuggingFace(n, 9, path=str(folder), pretrained=p) for n, p in ((2, True), (5, True), (5, False)))
    weights = [network.perturbed.weight for network in (one, other, new)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert other(torch.tensor([[2, 3]])).shape == (1, 5)


@installed
def test_wrong_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="has 9 tokens, but the data has 10"):
        HuggingFace(2, 10, path=str(folder))
    (folder / "config.json").write_text('{"model_type": "none such"}')
    with pytest.raises(ValueError, match="cannot be used") as error:
        HuggingFace(2, 9, path=str(folder))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no config"):
        HuggingFace(2, 9, path=str(tmp_path))


@installed
def test_code_in_the_folder_is_not_run(folder):
    (folder / "mine.py").write_text("raise SystemExit('run')\n")
    (folder / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.C"}, "pad_token_id": 0}')
    with pytest.raises(ValueError, match="cannot be used"):
        HuggingFace(2, 9, path=str(folder))


@installed
def test_texts_become_tokens_and_padding(folder):
    tokenizer = read_tokenizer(folder)
    assert tokenizer.numbers(["a great film", "so so dull a film"], 6).tolist() == [[2, 4, 6, 5, 3, 0], [2, 8, 8, 7, 4, 3]]
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="pad_token_id"):
        read_tokenizer(folder)
    (folder / "config.json").write_text('{"pad_token_id": null}')
    with pytest.raises(ValueError, match="must be a number"):
        read_tokenizer(folder)
    (folder / "config.json").write_text('{"pad_token_id": 0}')
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        read_tokenizer(folder)


@installed
@pytest.mark.filterwarnings("ignore:.*have the values of examples:UserWarning")
def test_a_run_and_its_checkpoint(job, folder, tmp_path):
    from vat.data.own.text import encode
    from vat.runs import checkpoints, predicting, records

    train = tmp_path / "train.csv"
    train.write_text("text,label\n" + "".join(f"a {'great' if i % 2 else 'dull'} film {'so ' * (i % 5)},{i % 2}\n" for i in range(40)))
    given = (f"data.train={train}", f"data.tokenizer={folder}", "data.max_length=12", f"model.path={folder}")
    run = job("data=text", "model=huggingface", *given, "test=last")
    record = checkpoints.read_checkpoint(run.checkpoint)["record"]
    network = records.load_network(run.checkpoint)
    (folder / "tokenizer.json").unlink()  # the checkpoint contains the tokenizer
    output = tmp_path / "out.csv"
    assert predicting.predict(run.checkpoint, train, output) == 40
    ids = encode(["a great film"], record["preparation"])
    assert ids.tolist() == [[2, 4, 6, 5, 3, *[0] * 7]]
    assert network(ids).shape == (1, 2)


def test_without_the_library_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install transformers"):
        HuggingFace(2, 9, path=str(tmp_path))
