import pytest
import torch
from test_trainer import make
from workers import weights_hash

from modernllm.training.callbacks import Callback
from modernllm.training.muon import Muon, muon_groups, orthogonalise


def test_orthogonal_part_of_any_matrix():
    "Compared with the singular value decomposition: the same directions, lengths near 1."
    torch.manual_seed(0)
    for rows, columns in ((4, 4), (5, 30), (20, 25)):
        x = torch.randn(3, rows, columns, dtype=torch.float64)
        u, _, v = torch.linalg.svd(x, full_matrices=False)
        turned = u.mT @ orthogonalise(x) @ v.mT
        torch.testing.assert_close(turned, torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1)), atol=1e-9, rtol=0)
    assert not orthogonalise(torch.zeros(1, 3, 4)).any()


def test_a_matrix_without_gradient_stays():
    layer = torch.nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    optimizer = Muon(muon_groups(layer, 0.1), 0.1)
    layer.bias.grad = torch.ones(4)
    optimizer.step()
    assert torch.equal(layer.weight, before) and layer.bias.abs().min() > 0


def test_muon_resumes_bit_for_bit(tmp_path):
    class Crash(Callback):
        def step_end(self, trainer, row):
            if row["step"] == 8:
                raise KeyError

    alone = make(optimizer="muon")
    alone.fit()
    with pytest.raises(KeyError):
        make(tmp_path, optimizer="muon", callbacks=[Crash()]).fit()
    resumed = make(tmp_path, optimizer="muon")
    resumed.fit()
    assert weights_hash(resumed.model) == weights_hash(alone.model)
    assert any("momentum" in state for state in alone.optimizer.state.values())
