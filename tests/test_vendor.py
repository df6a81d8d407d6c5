"""`validate --vendor DIR` on files of the same interface as the vendor's, written for this test."""

import textwrap

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from modelmeter.errors import InputError  # noqa: E402
from modelmeter.validate.case import compare  # noqa: E402
from modelmeter.validate.deepseek_ocr_vendor import vendor_cases  # noqa: E402
from modelmeter.validate.vendor import found_cases  # noqa: E402

VISION = """
    import torch
    from torch import nn
    from easydict import EasyDict as adict
    from flash_attn import flash_attn_qkvpacked_func

    class MLPBlock(nn.Module):
        def __init__(self, embedding_dim, mlp_dim, act=nn.GELU):
            super().__init__()
            self.lin1, self.lin2, self.act = nn.Linear(embedding_dim, mlp_dim), nn.Linear(mlp_dim, embedding_dim), act()

        def forward(self, x):
            return self.lin2(self.act(self.lin1(x)))

    class NoTPFeedForward(nn.Module):
        def __init__(self, cfg, dim, hidden_dim):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

        def forward(self, x):
            x = self.fc1(x)
            return self.fc2(x * torch.sigmoid(1.702 * x))

    cfg = adict(image_size=224)
    assert cfg.image_size == 224 and cfg.get("other", 1) == 1
"""
DECODER = """
    from torch import nn
    from transformers.models.llama.modeling_llama import LlamaFlashAttention2
    from transformers.utils.nowhere import is_gone
    from .configuration import SCALE

    @is_gone("as a decorator")
    def helper(): ...

    class DeepseekV2RMSNorm(nn.Module):
        def __init__(self, hidden_size, eps=1e-6):
            super().__init__()
            import torch
            self.weight = nn.Parameter(torch.ones(hidden_size))

        def forward(self, x):
            import torch
            y = x.float()
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.weight * y.to(x.dtype)

    class MoEGate(nn.Module):
        def __init__(self, config):
            super().__init__()
            raise RuntimeError("needs a cluster" if SCALE else "")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deepencoder").mkdir()
    (tmp_path / "deepencoder" / "sam_vary_sdpa.py").write_text(textwrap.dedent(VISION))
    (tmp_path / "modeling_deepseekv2.py").write_text(textwrap.dedent(DECODER))
    (tmp_path / "configuration.py").write_text("SCALE = 2\n")
    (tmp_path / "broken.py").write_text("class Block(\n")
    return tmp_path


def test_classes_of_the_folder_are_compared_and_others_listed(folder, model):
    cases, lacking = found_cases(str(folder), vendor_cases(model))
    assert {case.layer for case in cases} == {"MLPBlock", "NoTPFeedForward", "DeepseekV2RMSNorm"}
    for case in cases:
        assert compare(case).equal, case.layer
    listed = "\n".join(lacking)
    assert "vendor class Attention: not in" in listed
    assert "broken.py failed with SyntaxError" in listed
    assert "vendor class MoEGate: cannot be constructed here (RuntimeError: needs a cluster)" in listed


def test_a_vendor_class_that_differs_is_not_equal(folder, model):
    path = folder / "deepencoder" / "sam_vary_sdpa.py"
    path.write_text(
        path.read_text().replace("nn.Linear(embedding_dim, mlp_dim)", "nn.Linear(embedding_dim, mlp_dim, bias=False)")
    )
    case = next(c for c in found_cases(str(folder), vendor_cases(model))[0] if c.layer == "MLPBlock")
    assert compare(case).difference["parameters"] == -3072 and not compare(case).equal


def test_stand_ins_do_not_leak_into_python(folder, model):
    found_cases(str(folder), vendor_cases(model))
    for name in ("easydict", "flash_attn", "transformers.utils.nowhere"):
        with pytest.raises(ImportError):
            __import__(name)


def test_a_folder_without_python_is_refused(tmp_path, model):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not a folder with the vendor's Python files"):
            found_cases(str(folder), vendor_cases(model))
