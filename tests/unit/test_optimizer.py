"""optim: which parameters decay, AdamW's step, and every schedule against transformers' own."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from mtloop.config.parse import config_from
from mtloop.config.settings import resolve
from mtloop.config.training import SCHEDULES, OptimizerConfig
from mtloop.errors import UserError
from mtloop.runtime.xla import DeviceAdamW
from mtloop.trainer.schedule import build_optimizer, build_scheduler, describe_plan, resolve_steps, warmup_steps

FAMILIES = ["marian", "t5", "mbart", "m2m_100", "bart", "pegasus"]
# Arguments that a schedule needs, or takes.
ARGUMENTS = {
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0, "lr_end": 1e-5},
    "inverse_sqrt": {"timescale": 7},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 8, "min_lr_ratio": 0.2},
}


def optimizer_config(**values):
    return OptimizerConfig(**{"learning_rate": 1e-3, "adam_beta2": 0.98, **values})


def one_weight(learning_rate=1e-3):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_decays_is_what_transformers_lets_decay(tiny_configs, family):
    model = AutoModelForSeq2SeqLM.from_config(tiny_configs[family])
    optimizer = build_optimizer(model, optimizer_config(weight_decay=0.01))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, free = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    # As Trainer.get_decay_parameter_names of transformers 5.23 asks for them; tied weights stand there under each name.
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    assert decaying == set(get_parameter_names(model, [torch.nn.LayerNorm], forbidden)) & trainable
    assert free == trainable - decaying
    assert free and decaying
    # Once each: as many entries as parameters.
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trainable)


def test_frozen_parameters_are_left_out(tiny_configs):
    model = AutoModelForSeq2SeqLM.from_config(tiny_configs["t5"])
    for parameter in model.parameters():
        parameter.requires_grad = parameter.ndim < 2
    optimizer = build_optimizer(model, optimizer_config(weight_decay=0.1))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]
    assert all(p.ndim < 2 for p in optimizer.param_groups[0]["params"])


def test_the_settings_reach_the_step():
    """Two steps of a weight and a bias against algorithm 2 of Loshchilov and Hutter 2019, written out."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.constant_(model.bias, 0.5)
    rate, beta1, beta2, epsilon, decay = 0.01, 0.8, 0.95, 1e-3, 0.1
    config = OptimizerConfig(
        learning_rate=rate, adam_beta1=beta1, adam_beta2=beta2, adam_epsilon=epsilon, weight_decay=decay
    )
    optimizer = build_optimizer(model, config)
    gradients = [0.3, -0.2]
    for gradient in gradients:
        model.weight.grad = torch.full((1, 1), gradient)
        model.bias.grad = torch.full((1,), gradient)
        optimizer.step()
    for parameter, its_decay in ((model.weight, decay), (model.bias, 0.0)):
        expected, first, second = 0.5, 0.0, 0.0
        for step, gradient in enumerate(gradients, start=1):
            first = beta1 * first + (1 - beta1) * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
            expected -= rate * its_decay * expected
            expected -= rate * (first / (1 - beta1**step)) / ((second / (1 - beta2**step)) ** 0.5 + epsilon)
        assert parameter.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_transformers_own_at_every_step(name):
    arguments = ARGUMENTS.get(name, {})
    config = optimizer_config(lr_scheduler_type=name, lr_scheduler_kwargs=json.dumps(arguments) if arguments else None)
    ours, theirs = one_weight(), one_weight()
    schedule = build_scheduler(ours, config, num_warmup_steps=5, total_steps=20)
    expected = get_scheduler(
        name, theirs, num_warmup_steps=5, num_training_steps=20, scheduler_specific_kwargs=arguments
    )
    rates = []
    for _ in range(21):
        rates.append(ours.param_groups[0]["lr"])
        assert schedule.get_last_lr() == expected.get_last_lr() == [rates[-1]]
        for optimizer, its_schedule in ((ours, schedule), (theirs, expected)):
            optimizer.step()
            its_schedule.step()
    assert max(rates) == pytest.approx(1e-3)
    assert (len(set(rates)) == 1) == (name == "constant")


def test_linear_rises_over_the_warm_up_and_ends_at_zero():
    optimizer = one_weight(learning_rate=1.0)
    schedule = build_scheduler(optimizer, optimizer_config(), num_warmup_steps=4, total_steps=12)
    rates = []
    for _ in range(13):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # 4 updates of warm-up from 0 in quarters, then 8 down to 0 in eighths.
    assert rates == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, *[(8 - k) / 8 for k in range(9)]])


@pytest.mark.parametrize("name", ["cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"])
def test_a_schedule_without_the_arguments_it_needs_is_refused(name):
    with pytest.raises(UserError, match=rf"--lr_scheduler_type: needs .* \(got {name}\)\. Add --lr_scheduler_kwargs"):
        optimizer_config(lr_scheduler_type=name)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("linear", {"num_cycles": 2}),  # takes none
        ("cosine_with_min_lr", {"min_lr": 1e-5, "min_lr_rate": 0.1}),  # both is a contradiction
        ("polynomial", {"lr_end": 1.0}),  # above the rate it starts from
        ("warmup_stable_decay", {"num_decay_steps": 5, "warmup_type": "sudden"}),
        ("polynomial", {"power": -1}),  # a division by zero after the last update
        ("polynomial", {"lr_end": -1.0}),
        ("inverse_sqrt", {"timescale": 0}),
        ("cosine", {"num_cycles": "two"}),
        ("linear", {"last_epoch": 5}),  # a KeyError
    ],
)
def test_arguments_that_a_schedule_does_not_take_are_refused_in_one_line(name, arguments):
    config = optimizer_config(lr_scheduler_type=name, lr_scheduler_kwargs=json.dumps(arguments))
    with pytest.raises(UserError, match=f"--lr_scheduler_type {name}: .*--lr_scheduler_kwargs") as caught:
        build_scheduler(one_weight(), config, num_warmup_steps=2, total_steps=10)
    assert "\n" not in str(caught.value)


def test_build_scheduler_refuses_a_polynomial_of_nothing_but_warmup():
    config = optimizer_config(lr_scheduler_type="polynomial")
    with pytest.raises(UserError, match=r"got --num_warmup_steps 10 of 10"):
        build_scheduler(one_weight(), config, num_warmup_steps=10, total_steps=10)


@pytest.mark.parametrize(("num_epochs", "expected"), [(1, 10), (0.5, 5), (1.1, 11), (0.33, 4), (1e-3, 1), (2.01, 21)])
def test_resolve_steps_rounds_fractions_of_an_epoch_up(num_epochs, expected):
    config = resolve(config_from({"model_name_or_path": "m", "train_file": "a.tsv", "source_lang": "en",
        "target_lang": "fr", "num_train_epochs": num_epochs}))  # fmt: skip
    loader = SimpleNamespace(updates_per_epoch=10, shapes=[])
    config, total_steps, warmup = resolve_steps(config, loader)
    assert (total_steps, warmup) == (expected, 0)
    (line,) = describe_plan(config, loader, total_steps, warmup)
    is_said = f"{expected} updates of 32 sentences, 10 an epoch ({num_epochs} epochs, rounded up); " in line
    assert is_said == (num_epochs != 1)


@pytest.mark.parametrize(
    ("asked", "total_steps", "is_from_scratch", "expected"),
    [
        (None, 5_000, True, 500),  # a tenth
        (None, 100_000, True, 4_000),  # a tenth would be 10,000
        (None, 9, True, 0),
        (None, 5_000, False, 0),
        (0, 5_000, True, 0),
        (7, 5_000, False, 7),
        (0.1, 5_000, True, 500),
        (0.1, 11, False, 2),  # rounded up
        (0.07, 100, False, 7),  # 0.07 * 100 is above 7 as a float
    ],
)
def test_the_warm_up_rule(asked, total_steps, is_from_scratch, expected):
    config = optimizer_config(num_warmup_steps=asked)
    assert warmup_steps(config, total_steps=total_steps, is_from_scratch=is_from_scratch) == expected


# AdamW of a device that compiles


def two_optimizers():
    """The same weights under torch's own AdamW and under the one for XLA."""
    made = []
    for kind in (torch.optim.AdamW, DeviceAdamW):
        torch.manual_seed(3)
        weights = [torch.nn.Parameter(torch.randn(5, 4)), torch.nn.Parameter(torch.randn(7))]
        groups = [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]
        made.append((weights, kind(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-8)))
    return made


def take_step(weights, optimizer, number, *, is_left_out=None):
    for index, weight in enumerate(weights):
        generator = torch.Generator().manual_seed(10 * number + index)
        weight.grad = torch.randn(weight.shape, generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * number
    if is_left_out is not None:
        optimizer.found_inf = torch.tensor(float(is_left_out))
    optimizer.step()


def test_adamw_of_a_device_is_torchs_own():
    (expected, plain), (found, own) = two_optimizers()
    for number in range(30):  # the first at a rate of 0
        take_step(expected, plain, number)
        take_step(found, own, number, is_left_out=False)
    for one, other in zip(expected, found, strict=True):
        # 30 steps of at most 0.03 each in fp32, whose 1 - beta ** step is off by 6e-8 of 0.02 at the first.
        torch.testing.assert_close(other, one, rtol=0, atol=5e-6)
    # A checkpoint of one is one of the other.
    kept = {name: tensor.clone() for name, tensor in own.state_dict()["state"][0].items()}
    own.load_state_dict({**plain.state_dict(), "param_groups": own.state_dict()["param_groups"]})
    for name, tensor in own.state_dict()["state"][0].items():
        torch.testing.assert_close(tensor, plain.state[expected[0]][name], rtol=0, atol=0)
        torch.testing.assert_close(tensor, kept[name], rtol=1e-5, atol=1e-8)


def test_adamw_of_a_device_leaves_out_a_step_that_is_no_number():
    _, (weights, own) = two_optimizers()
    take_step(weights, own, 1, is_left_out=False)
    before = [weight.detach().clone() for weight in weights]
    state = [tensor.clone() for entry in own.state.values() for tensor in entry.values()]
    for weight in weights:
        weight.grad = torch.full_like(weight, torch.nan)
    own.found_inf = torch.tensor(1.0)
    own.step()
    assert all(torch.equal(one, other) for one, other in zip(weights, before, strict=True))
    assert all(
        torch.equal(one, other)
        for one, other in zip([t for entry in own.state.values() for t in entry.values()], state, strict=True)
    )
