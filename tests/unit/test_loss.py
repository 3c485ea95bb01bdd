"""Test loss: sums are additive, padding does not count, label smoothing follows the formula."""

import math

import pytest
import torch

from mtloop.batching.loader import IGNORE_INDEX
from mtloop.model import loss
from mtloop.model.loss import Projection, projected_loss_sum, token_loss_sum


@pytest.fixture
def batch():
    torch.manual_seed(0)
    labels = torch.randint(0, 50, (4, 7))
    labels[1, 4:] = IGNORE_INDEX
    labels[3, 1:] = IGNORE_INDEX
    return torch.randn(4, 7, 50, requires_grad=True), labels


def by_hand(logits, labels, smoothing):
    """Szegedy et al. 2016, equation 7: targets (1 - e) one-hot + e / V."""
    total = 0.0
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1]):
            if labels[b, t] == IGNORE_INDEX:
                continue
            log_p = torch.log_softmax(logits[b, t].double(), dim=0)
            target = torch.full((logits.shape[-1],), smoothing / logits.shape[-1], dtype=torch.float64)
            target[labels[b, t]] += 1 - smoothing
            total -= float((target * log_p).sum())
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_token_loss_sum_equals_the_formula(batch, smoothing):
    logits, labels = batch
    expected = by_hand(logits.detach(), labels, smoothing)
    assert token_loss_sum(logits, labels, label_smoothing=smoothing).item() == pytest.approx(expected, rel=1e-5)


def test_token_loss_sum_of_uniform_logits_is_log_v_per_token():
    labels = torch.tensor([[3, 4, IGNORE_INDEX]])
    assert token_loss_sum(torch.zeros(1, 3, 32), labels).item() == pytest.approx(2 * math.log(32))


def test_token_loss_sum_is_additive(batch):
    logits, labels = batch
    parts = sum(token_loss_sum(logits[i : i + 1], labels[i : i + 1]) for i in range(4))
    assert parts.item() == pytest.approx(token_loss_sum(logits, labels).item(), rel=1e-6)


def test_token_loss_sum_gives_padding_no_gradient(batch):
    logits, labels = batch
    token_loss_sum(logits, labels).backward()
    is_padding = labels == IGNORE_INDEX
    assert logits.grad[is_padding].abs().max() == 0
    assert logits.grad[~is_padding].abs().min() > 0


def test_token_loss_sum_of_a_filler_has_a_zero_gradient(batch):
    logits, labels = batch
    loss = token_loss_sum(logits, torch.full_like(labels, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


def test_token_loss_sum_sums_half_precision_in_fp32(batch):
    logits, labels = batch
    loss = token_loss_sum(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(logits.detach().bfloat16(), labels, 0.0), rel=1e-5)


@pytest.fixture
def projection():
    """Hidden [23, 8], weight [50, 8], bias [1, 50] and labels [23]: of leaves that take gradients."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    return hidden, weight, torch.randn(1, 50), torch.randint(0, 50, (23,))


def gradients(total, *leaves):
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("most", [1, 50 * 7, 2**24], ids=["a row a chunk", "a last short chunk", "one chunk"])
def test_projected_loss_sum_in_chunks_equals_loss_of_all_logits(projection, monkeypatch, smoothing, most):
    monkeypatch.setattr(loss, "MAX_LOGITS_ON_CPU", most)
    hidden, weight, bias, labels = projection
    whole = token_loss_sum((hidden @ weight.T + bias)[None], labels[None], label_smoothing=smoothing)
    ours = projected_loss_sum(hidden, weight, labels, bias=bias, label_smoothing=smoothing)
    assert ours.item() == pytest.approx(whole.item(), rel=1e-6)
    # Divided by 7, as the trainer divides by the update's tokens: the gradient that was found earlier scales along.
    for mine, expected in zip(gradients(ours / 7, hidden, weight), gradients(whole / 7, hidden, weight), strict=True):
        # Sums of 50 products of numbers around 1 round to some 1e-7 of the largest.
        assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-6)


def test_projected_loss_sum_of_no_rows_is_zero(projection):
    hidden, weight, bias, labels = projection
    total = projected_loss_sum(hidden[:0], weight, labels[:0], bias=bias)
    assert total.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients(total, hidden, weight))


def test_projected_loss_sum_gives_a_frozen_weight_no_gradient(projection):
    hidden, weight, bias, labels = projection
    total = projected_loss_sum(hidden, weight.detach(), labels, bias=bias)
    expected = token_loss_sum((hidden @ weight.detach().T + bias)[None], labels[None])
    assert torch.allclose(*gradients(total, hidden), *gradients(expected, hidden), rtol=1e-5, atol=1e-6)


def test_projected_loss_sum_sums_bf16_in_fp32(projection):
    hidden, weight, bias, labels = projection
    total = projected_loss_sum(hidden, weight, labels, bias=bias, dtype=torch.bfloat16)
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float() + bias
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(token_loss_sum(logits[None], labels[None]).item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_accumulates_the_gradient_of_micro_batches(projection, dtype):
    hidden, weight, bias, labels = projection
    expected = gradients(projected_loss_sum(hidden, weight, labels, bias=bias, dtype=dtype) / 7, hidden, weight)
    shared = Projection(num_forwards=3)
    found = []
    for part in (slice(0, 9), slice(9, 9), slice(9, 23)):  # the second is a filler
        total = projected_loss_sum(hidden[part], weight, labels[part], bias=bias, dtype=dtype, projection=shared)
        (total / 7).backward()
        found.append(weight.grad is not None)
    assert found == [False, False, True]  # by the last backward alone
    # A gradient in bf16 has 8 bits: a product of another number of rows rounds once more or less.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    assert torch.allclose(weight.grad, expected[1], rtol=tolerance, atol=tolerance)
    assert torch.allclose(hidden.grad, expected[0], rtol=1e-6, atol=1e-6)


def test_projection_casts_the_weight_once(projection):
    _, weight, _, _ = projection
    shared = Projection(num_forwards=2)
    columns = [shared.columns(weight, torch.bfloat16) for _ in range(2)]
    assert columns[0] is columns[1] and columns[0].dtype == torch.bfloat16
