"""What the operator list records: kernels, not views; operands once; gathers by row; what depends on inputs."""

import pytest

torch = pytest.importorskip("torch")

from operators import Operators, live_at_peak  # noqa: E402

HALF = torch.bfloat16
DEVICES = pytest.mark.parametrize("device", ["meta", "cpu"])


def recorded(run, *inputs):
    with torch.no_grad(), Operators(inputs) as operators:
        run(*inputs)
    return operators


def one(run, *inputs):
    (kernel,) = recorded(run, *inputs).seen
    return kernel


@DEVICES
def test_views_and_allocations_are_no_kernels(device):
    def run(x):
        a, b = x.view(2, 3, 4).transpose(1, 2).split(2, dim=1)
        b.expand(2, 2, 3)[..., 1:].permute(2, 0, 1).unsqueeze(0).detach().unbind(0)
        a.squeeze().reshape(2, 2, 3)
        x.contiguous().to(x.dtype).flatten().chunk(2)
        torch.empty(3, device=device), x.new_empty(3), torch.empty_like(x)

    assert recorded(run, torch.ones(2, 12, device=device)).seen == []


@DEVICES
def test_a_reshape_is_a_kernel_only_where_it_copies(device):
    x = torch.ones(2, 3, 4, device=device, dtype=HALF)
    kernel = one(lambda x: x.transpose(1, 2).reshape(2, 12), x)
    assert (kernel.name, kernel.bytes_read, kernel.bytes_written) == ("clone", 2 * 24, 2 * 24)
    assert recorded(lambda x: x[:1].transpose(1, 2).transpose(0, 1).reshape(4, 3), x).seen == []


@DEVICES
def test_a_broadcast_operand_counts_its_own_elements(device):
    x, row = torch.ones(5, 7, device=device), torch.ones(7, device=device)
    assert one(lambda x, y: x + y, x, row).bytes == 4 * (35 + 7 + 35)
    assert one(lambda x, y: x + y.expand(5, 7), x, row).bytes == 4 * (35 + 7 + 35)
    assert one(lambda x, y: y.expand(5, 7).clone(), x, row).bytes == 4 * (7 + 35)


@DEVICES
def test_an_operand_that_is_named_twice_counts_once(device):
    x = torch.ones(5, device=device)
    assert one(lambda x: x * x, x).bytes == 4 * 10
    assert one(lambda x: x[:2] * x[2:4], x).bytes == 4 * 6


@DEVICES
def test_cat_reads_all_its_inputs_and_an_empty_one_for_nothing(device):
    parts = torch.ones(2, 3, device=device), torch.ones(4, 3, device=device), torch.ones(0, device=device)
    kernel = one(lambda *parts: torch.cat(parts), *parts)
    assert (kernel.bytes_read, kernel.bytes_written) == (4 * 18, 4 * 18)


@DEVICES
def test_softmax_in_fp32_is_three_kernels_of_20_bytes_an_element(device):
    x = torch.ones(3, 4, device=device, dtype=HALF)
    kernels = recorded(lambda x: x.softmax(-1, dtype=torch.float32).to(HALF), x).kernels
    assert [k.name for k in kernels] == ["_to_copy", "_softmax", "_to_copy"]
    assert sum(k.bytes for k in kernels) == 20 * x.numel()


@DEVICES
def test_operators_in_place_write_their_first_argument(device):
    x, y = torch.ones(4, 3, device=device), torch.ones(2, 3, device=device)
    assert [(k.bytes_read, k.bytes_written) for k in recorded(lambda x, y: x[:2].add_(y), x, y).seen] == [(48, 24)]
    assert [(k.bytes_read, k.bytes_written) for k in recorded(lambda x, y: x[1:3].copy_(y), x, y).seen] == [(24, 24)]
    assert [(k.bytes_read, k.bytes_written) for k in recorded(lambda x: x.zero_(), x).seen] == [(0, 48)]
    index = torch.zeros(2, dtype=torch.long, device=device)
    added = one(lambda x, y, index: x.index_add_(0, index, y), x, y, index)
    assert (added.bytes_read, added.bytes_written) == (24 + 16 + 24, 24)


@DEVICES
def test_gathers_read_rows_and_indices(device):
    table, rows = torch.ones(100, 8, device=device, dtype=HALF), torch.zeros(3, dtype=torch.long, device=device)
    for run in (torch.nn.functional.embedding, lambda i, t: t[i], lambda i, t: t.index_select(0, i)):
        kernel = one(run, rows, table)
        assert (kernel.bytes_read, kernel.bytes_written) == (3 * 8 * 2 + 3 * 8, 3 * 8 * 2)


@DEVICES
def test_what_no_input_reaches_is_constant(device):
    def run(x):
        mask = torch.full((3, 3), -1.0, device=device).triu(1)
        buffer = torch.zeros(3, 3, device=device)
        buffer.add_(x)
        return buffer + mask + x.new_ones(3)

    seen = recorded(run, torch.ones(3, 3, device=device)).seen
    assert [(k.name, k.constant) for k in seen] == [
        ("full", True), ("triu", True), ("zeros", True), ("add_", False), ("add", False), ("new_ones", True), ("add", False),
    ]  # fmt: skip


def test_bytes_are_those_of_the_kernels_that_depend_on_the_inputs():
    x = torch.ones(3)
    operators = recorded(lambda x: torch.arange(3) + x, x)
    assert operators.bytes == operators.kernels[0].bytes == 3 * (8 + 4 + 4)
    assert str(operators.kernels[0]) == "add: int64[3] fp32[3] -> fp32[3]"


def test_a_norm_says_that_its_input_must_be_copied_first():
    norm, x = torch.nn.LayerNorm(4, device="meta"), torch.ones(2, 4, 3, device="meta")
    assert recorded(lambda x: norm(x.transpose(1, 2)), x).kernels[0].copies[0].bytes == x.numel() * 4
    assert recorded(lambda x: norm(x.transpose(1, 2).contiguous()), x).kernels[1].copies == ()


def test_eager_attention_peaks_in_its_softmax():
    """Scores in bf16, in fp32 and their softmax are alive at once: 10 bytes a score, beside q, k and v."""
    ocr = pytest.importorskip("transformers.models.unlimited_ocr.modeling_unlimited_ocr")
    heads, tokens, width = 2, 9, 4
    q, k, v = (torch.ones(1, heads, tokens, width, dtype=HALF, device="meta") for _ in "qkv")
    module = torch.nn.Module().eval()
    live = live_at_peak(lambda: ocr.eager_attention_forward(module, q, k, v, None, 0.5), (q, k, v), ())
    assert live.peak == 10 * heads * tokens**2 + 3 * 2 * heads * tokens * width
