import pytest
import torch
from torch import nn

from vat import VAT, Adversarial, Entropy, MeanTeacher, PiModel, RandomPerturbation, Step, local_distributional_smoothness
from vat.models import NormalizedEmbedding, TextCNN, TextMean
from vat.step import Key

COUNTS = [0, 3, 20, 7, 1, 9]
IDS = torch.tensor([[2, 3, 5, 0, 0], [4, 2, 2, 1, 5], [5, 0, 0, 0, 0]], dtype=torch.int32)
NETWORKS = [lambda: TextMean(3, COUNTS, dim=4, hidden=6, dropout=0.0), lambda: TextCNN(3, COUNTS, dim=4, channels=5, dropout=0.0)]


@pytest.fixture(params=NETWORKS, ids=["mean", "cnn"])
def network(request):
    torch.manual_seed(0)
    return request.param().double()


def test_embeddings_have_mean_0_and_variance_1_over_the_words_as_often_as_they_occur():
    torch.manual_seed(0)
    layer = NormalizedEmbedding(COUNTS, 4).double()
    occurring = torch.tensor([word for word, count in enumerate(COUNTS) for _ in range(count)])
    embedded = layer(occurring)
    torch.testing.assert_close(embedded.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(embedded.var(0, correction=0), torch.ones(4, dtype=torch.float64), rtol=1e-4, atol=1e-4)  # 1e-6 is added


@pytest.mark.parametrize("counts", [[], [0, 0], [1, -1]])
def test_invalid_counts_are_refused(counts):
    with pytest.raises(ValueError, match="counts must hold"):
        NormalizedEmbedding(counts, 4)


@pytest.mark.parametrize("widths", [(), (2,), (0,)])
def test_widths_that_would_shift_the_text_are_refused(widths):
    with pytest.raises(ValueError, match="odd numbers"):
        TextCNN(2, COUNTS, widths=widths)


def test_padding_changes_nothing(network):
    network.eval()
    padded = torch.cat([IDS, torch.zeros(3, 4, dtype=torch.int32)], 1)
    torch.testing.assert_close(network(IDS), network(padded))
    for regularizer in (VAT(1.0, direction="margin"), Adversarial(1.0), RandomPerturbation(1.0), Entropy()):
        y = torch.tensor([0, 1, 2])
        short, long = (regularizer.term(Step(network, x, y, key=Key(3), live=True)) for x in (IDS, padded))
        torch.testing.assert_close(short, long, msg=f"{regularizer.name} depends on the padding")


def test_the_term_is_that_of_the_embeddings_by_hand(network):
    """Compute r = ε unit(∇ of the margin) for each text by autograd on the embeddings, and the KL of a network that gets embeddings."""
    network.eval()
    found = VAT(2.0, direction="margin")(network, IDS)
    mask = network.mask(IDS)
    x = network.embedding(IDS).detach().requires_grad_()
    logits = network.logits(x, mask)
    top = logits.topk(2, 1).values
    (gradient,) = torch.autograd.grad((top[:, 1] - top[:, 0]).sum(), x)
    gradient = gradient * mask.unsqueeze(2)
    r = 2.0 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
    p, q = logits.detach().softmax(1), network.logits(network.embedding(IDS) + r, mask).log_softmax(1)
    torch.testing.assert_close(found, (p * (p.log() - q)).sum(1).mean())
    ours = torch.autograd.grad(found, list(network.parameters()), allow_unused=True)
    theirs = torch.autograd.grad((p * (p.log() - q)).sum(1).mean(), list(network.parameters()), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert ours[0].abs().sum() > 0, "the embedding's weights are trained"


def test_lds_needs_no_named_layer(network):
    network.eval()
    value = local_distributional_smoothness(network, IDS, eps=1.0, key=Key(0))
    assert value.shape == (3,)
    assert (value > 0).all()


def test_another_mask_and_layer_can_be_named(network):
    network.eval()
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 0] = True
    step = Step(network, IDS, mask=mask, key=Key(0))
    r = VAT(1.0).virtual_adversarial_perturbation(step)
    assert (r[:, 1:] == 0).all()
    assert Step(network, IDS, at=network.embedding).mask is None, "with an explicit layer the mask is the user's"


def test_a_teacher_reads_words_by_its_own_embeddings(network):
    network.eval()
    teacher = MeanTeacher(decay=0.5)
    teacher.on_fit_start(network)
    with torch.no_grad():
        expected = network(IDS).softmax(1)
        network.embedding.weight.add_(torch.randn_like(network.embedding.weight))
        now = network(IDS).softmax(1)
    value = teacher.term(Step(network, IDS, key=Key(0), live=True))
    torch.testing.assert_close(value, (now - expected).square().mean())


def test_a_second_view_of_a_text_is_the_text(network):
    """Otherwise integers would replace the embeddings."""
    network.eval()
    assert PiModel().term(Step(network, IDS, key=Key(0), live=True, view=IDS)) == 0


def test_integers_without_a_layer_to_perturb_are_refused():
    network = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(20, 2))
    with pytest.raises((TypeError, ValueError), match="floating"):
        VAT(1.0)(network, IDS)
