import json
from types import SimpleNamespace

import networks
import pytest
import torch

from vat import VAT
from vat.evaluation.diagnosis import diagnose
from vat.runs import direction_report
from vat.step import Key

CPU = torch.device("cpu")


def network():
    return networks.network(5, 12, 4, dtype=torch.float32)


def batches():
    x = 2 * torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    return [(part, torch.zeros(len(part))) for part in x.split(8)]


def node(target, **options):
    return {"regularizers": [{"_target_": "vat.regularizers.entropy.Entropy"}, {"_target_": target, **options}]}


def test_the_vat_that_is_judged_is_the_runs_at_its_final_radius():
    vat = direction_report.judged(node("vat.regularizers.vat.VAT", eps=0.7, direction="margin", eps_start=0.1, eps_steps=50))
    assert vat is not None
    assert vat.current_eps == 0.7
    assert vat.direction.__name__ == "margin"


@pytest.mark.parametrize("other", ["random_perturbation.RandomPerturbation", "published_vat.PublishedVAT"])
def test_a_run_without_vat_has_none_to_be_judged(other):
    assert direction_report.judged(node(f"vat.regularizers.{other}", eps=9.0)) is None


def test_means_and_standard_errors_are_those_of_all_examples():
    found = direction_report.measure(network(), batches(), VAT(0.5, direction="margin"), seed=3, device=CPU)
    parts = [diagnose(network(), x, VAT(0.5, direction="margin"), key=Key(3, i)) for i, (x, _) in enumerate(batches())]
    lds = torch.cat([part["lds"] for part in parts]).double()
    assert found["examples"] == 20
    assert found["mean"]["lds"] == pytest.approx(lds.mean().item())
    assert found["standard_error"]["lds"] == pytest.approx(lds.std().item() / 20**0.5)
    assert found["interpretation"] == []


def test_what_is_abnormal_is_written_and_printed_in_words(tmp_path, capsys):
    vat = VAT(1e-4)
    found = direction_report.measure(network(), batches(), vat, seed=0, device=CPU)
    path = tmp_path / "evaluation" / "direction.json"
    direction_report.show(found, vat, "pixels", path)
    assert json.loads(path.read_text()) == {"direction": "random_margin", "eps": 1e-4, "unit": "pixels", **found}
    printed = capsys.readouterr().out
    assert "eps is too small to matter" in " ".join(printed.split())
    assert "ε = 0.0001 (pixels)" in printed


def test_a_class_that_is_never_predicted_is_named_whatever_the_direction():
    from vat.runs.direction_report import _left_out

    class Merged(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x[:, 0].long().clamp(max=1), 3).float()

    x = (torch.arange(120) % 3).float()[:, None]
    of = SimpleNamespace(network=Merged(), record={"class_names": ["a", "b", "c"]}, device=torch.device("cpu"))
    batches = list(zip(x.split(50), x[:, 0].long().split(50), strict=True))
    sentences = _left_out(of, batches)
    assert sentences[0].startswith("test examples: almost never predicted: c 0.0 % (labels 33.3 %)")
    of.network = lambda x: torch.nn.functional.one_hot(x[:, 0].long(), 3).float()
    assert _left_out(of, batches) == []
