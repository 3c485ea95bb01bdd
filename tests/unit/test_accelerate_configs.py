"""accelerate_configs/: every file is one that accelerate's own reader and launcher take, and is what its name says."""

import os

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.support.launch import PROJECT, launch_file, launcher_arguments

# name: distributed type, processes in all machines together, machines, mixed precision, use_cpu. multi_cpu is MULTI_GPU
# without use_cpu because the launcher starts a single process for every other spelling of several CPU processes.
PROMISES = {
    "cpu": (DistributedType.NO, 1, 1, "no", True),
    "multi_cpu": (DistributedType.MULTI_GPU, 2, 1, "no", False),
    "single_gpu": (DistributedType.NO, 1, 1, "bf16", False),
    "multi_gpu": (DistributedType.MULTI_GPU, 2, 1, "bf16", False),
    "multi_node": (DistributedType.MULTI_GPU, 2 * 8, 2, "bf16", False),
    "fsdp": (DistributedType.FSDP, 2, 1, "bf16", False),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 2, 1, "bf16", False),
    "tpu": (DistributedType.XLA, 8, 1, "bf16", False),
    "tpu_pod": (DistributedType.XLA, 4 * 8, 4, "bf16", False),
}


def test_every_file_is_listed_here():
    assert sorted(path.name for path in (PROJECT / "accelerate_configs").glob("*.yaml")) == sorted(
        f"{name}.yaml" for name in PROMISES
    )


@pytest.mark.parametrize("name", PROMISES)
def test_the_file_is_what_its_name_promises(name):
    # from_yaml_file raises ValueError for an unknown key.
    config = load_config_from_file(str(launch_file(name)))
    kept = (
        config.distributed_type,
        config.num_processes,
        config.num_machines,
        config.mixed_precision,
        config.use_cpu,
    )
    assert kept == PROMISES[name]
    assert config.main_training_function == "main"


@pytest.mark.parametrize("name", PROMISES)
def test_the_file_begins_with_when_to_pick_it_its_command_and_what_to_change(name):
    lines = launch_file(name).read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line)
    assert comment[0].startswith("# Pick this for ")
    assert any(f"accelerate launch --config_file accelerate_configs/{name}.yaml" in line for line in comment)
    assert any(line.startswith("# Change: ") for line in comment)


@pytest.mark.parametrize("name", PROMISES)
def test_the_launcher_takes_the_file_and_picks_the_launcher_that_is_meant(name):
    arguments = launcher_arguments(name)
    distributed_type, num_processes, num_machines, mixed_precision, use_cpu = PROMISES[name]
    assert arguments.multi_gpu == (distributed_type == DistributedType.MULTI_GPU)
    assert arguments.use_fsdp == (distributed_type == DistributedType.FSDP)
    assert arguments.use_deepspeed == (distributed_type == DistributedType.DEEPSPEED)
    assert arguments.tpu == (distributed_type == DistributedType.XLA)
    assert (arguments.num_processes, arguments.num_machines) == (num_processes, num_machines)
    assert (arguments.mixed_precision, arguments.use_cpu) == (mixed_precision, use_cpu)


@pytest.mark.parametrize("name", PROMISES)
def test_no_key_of_the_file_is_ignored_by_the_launcher(name):
    # The launcher drops a key without a word when the flag of that name has a default of its own (same_network has).
    keys = yaml.safe_load(launch_file(name).read_text(encoding="utf-8"))
    keys.update(keys.pop("fsdp_config", {}) | keys.pop("deepspeed_config", {}))
    for consumed in ("compute_environment", "distributed_type"):
        keys.pop(consumed)
    arguments = launcher_arguments(name)
    assert {key: getattr(arguments, key) for key in keys} == keys


def test_several_machines_meet_at_one_address():
    config = load_config_from_file(str(launch_file("multi_node")))
    assert (config.machine_rank, config.rdzv_backend) == (0, "static")
    # As the second machine, because the first one also tries to open the port.
    arguments = launcher_arguments("multi_node", "--machine_rank", "1")
    prepare_multi_gpu_env(arguments)
    # 16 processes on 2 machines are 8 on each.
    assert (arguments.nproc_per_node, arguments.nnodes, arguments.node_rank) == ("8", "2", 1)
    assert arguments.rdzv_endpoint == f"{config.main_process_ip}:{config.main_process_port}" == "10.0.0.1:29500"


def test_fsdp_keys_are_the_launcher_s_and_give_a_full_sharding_fsdp2_plugin(monkeypatch):
    keys = yaml.safe_load(launch_file("fsdp").read_text(encoding="utf-8"))["fsdp_config"]
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(keys) <= known
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    for name, value in prepare_multi_gpu_env(launcher_arguments("fsdp")).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None  # the program names them
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is False
