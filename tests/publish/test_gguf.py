"""GGUFs: what is written is read back; what can't be written is refused; llama.cpp computes the same."""

import itertools
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from medqa.config import SourceConfig
from medqa.data.places import STARTER
from medqa.data.sources import read_split
from medqa.errors import ConfigError, DependencyError, EngineError, ModelError
from medqa.evaluate.score import Item, make_items
from medqa.model.generate import Written
from medqa.prompts import PromptRenderer
from medqa.publish import llama_library as library
from medqa.publish.gguf import WRITTEN, write_gguf
from medqa.publish.llama import QUANTIZED, LlamaEngine, quantize
from medqa.testing import CHAT_TEMPLATE, make_examples, make_tokenizer

QWEN3 = Path(__file__).resolve().parents[3] / "shared/models/qwen3-1.7b"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# A word of each kind of place: norms, projections with and without turned rows, feed-forward, embedding.
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
    "model.layers.1.self_attn.k_proj.weight": "blk.1.attn_k.weight",
    "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
    "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
    "model.norm.weight": "output_norm.weight",
}


def make_model(folder, family, tokenizer=None, shards="4GB", **settings):
    """A random model of two blocks with four heads, two for keys, as a folder."""
    import transformers

    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 3, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **heads, **ids, **settings})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.1)
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer.save_pretrained(folder)
    return model.eval()


def contents(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors(path):
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }


def turned_back(weight, heads):
    """Undo the order by pairs: row 2i of a head is the first half's row i, row 2i + 1 the second half's."""
    size = len(weight) // heads
    order = [n for half in (0, 1) for n in range(half, size, 2)]
    return weight[[head * size + n for head in range(heads) for n in order]]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_every_weight_is_there_under_its_name(family, tmp_path):
    untied = {"tie_word_embeddings": family == "Qwen3"}
    model = make_model(tmp_path / "m", family, shards="60KB", sliding_window=None, **untied)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32", stop_token_id=5)
    found, weights = tensors(tmp_path / "m.gguf"), dict(model.named_parameters())
    more = {
        "Qwen2": {f"model.layers.0.self_attn.{p}_proj.bias": f"blk.0.attn_{p}.bias" for p in "qkv"},
        "Qwen3": {f"model.layers.0.self_attn.{p}_norm.weight": f"blk.0.attn_{p}_norm.weight" for p in "qk"},
    }
    for ours, theirs in {**NAMES, **more.get(family, {})}.items():
        value = found[theirs]
        if family in ("Llama", "Mistral") and "attn_q" in theirs:
            value = turned_back(value, 4)
        if family in ("Llama", "Mistral") and "attn_k" in theirs:
            value = turned_back(value, 2)
        np.testing.assert_array_equal(value, weights[ours].detach().numpy(), theirs)
    assert ("output.weight" in found) == (family != "Qwen3")
    assert len(found) == len(weights)
    assert not list(tmp_path.glob(".*"))


def test_settings_are_those_that_llama_cpp_reads(tiny_model, tmp_path):
    write_gguf(tiny_model, tmp_path / "m.gguf", "f16", stop_token_id=7, name="tiny")
    found = contents(tmp_path / "m.gguf")
    assert found["general.architecture"] == "qwen3"
    assert (found["general.name"], found["general.type"]) == ("tiny", "model")
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert found["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    expected = {
        "block_count": 2,
        "context_length": 1024,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.dimension_count": 8,
        "rope.freq_base": 10000.0,
        "vocab_size": len(make_tokenizer()),
    }
    assert {key: found[f"qwen3.{key}"] for key in expected} == expected
    assert found["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_the_tokenizer_the_template_and_the_stop_token_go_along(tiny_model, tokenizer, tmp_path):
    stop = tokenizer.convert_tokens_to_ids("<|start|>")  # another one than the tokenizer's own
    write_gguf(tiny_model, tmp_path / "m.gguf", "f32", stop_token_id=stop)
    found = contents(tmp_path / "m.gguf")
    tokens = found["tokenizer.ggml.tokens"]
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert found["tokenizer.ggml.eos_token_id"] == stop != tokenizer.eos_token_id
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert "\u0120 A" in found["tokenizer.ggml.merges"]
    control = [tokens[n] for n, kind in enumerate(found["tokenizer.ggml.token_type"]) if kind == 3]
    assert control == ["<|start|>", "<|end|>"]


def test_rows_without_a_token_are_filled_up(tmp_path):
    make_model(tmp_path / "m", "Qwen2", vocab_size=300)
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32", stop_token_id=5)
    found = contents(tmp_path / "m.gguf")
    assert len(found["tokenizer.ggml.tokens"]) == 300
    assert found["tokenizer.ggml.tokens"][-1] == "[PAD299]"
    assert found["tokenizer.ggml.token_type"][-1] == gguf.TokenType.UNUSED


@pytest.mark.parametrize(("kind", "error"), [("f32", 0), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 1e-2)])
def test_matrices_take_the_kind_and_vectors_stay(kind, error, tiny_model, tmp_path):
    from safetensors.torch import load_file

    write_gguf(tiny_model, tmp_path / "m.gguf", kind, stop_token_id=5)
    exact = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"].numpy()
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        assert tensor.tensor_type.name == ("F32" if len(tensor.shape) == 1 else kind.upper())
    off = np.abs(tensors(tmp_path / "m.gguf")["token_embd.weight"] - exact).max() / np.abs(exact).max()
    assert off <= error
    assert kind in WRITTEN


def test_rows_that_do_not_fit_blocks_stay_f16(tmp_path, caplog):
    make_model(tmp_path / "m", "Llama", intermediate_size=40)
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "q8_0", stop_token_id=5)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
    assert "down_proj.weight stays f16" in caplog.text


def changed(folder, tmp_path, file, **values):
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    record = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**record, **values}))
    return copy


SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,2}"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "gemma3"}, "architecture 'gemma3'"),
        ("config.json", {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": None}, "'yarn'"),
        ("config.json", {"rope_parameters": LLAMA3}, "'llama3'"),  # llama.cpp has that for Llama only
        ("config.json", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("config.json", {"use_sliding_window": True, "sliding_window": 64}, "sliding_window=64"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("config.json", {"tie_word_embeddings": False}, r"no lm_head\.weight"),
        ("config.json", {"vocab_size": 200}, "only 200 rows"),
        ("tokenizer.json", {"pre_tokenizer": SPLIT}, r"\{1,2\}"),
        ("tokenizer.json", {"pre_tokenizer": None}, "not known here"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "no merges"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(file, values, message, tmp_path):
    make_model(tmp_path / "plain", "Qwen3", tie_word_embeddings=True)
    folder = changed(tmp_path / "plain", tmp_path, file, **values)
    with pytest.raises(ModelError, match=message) as error:
        write_gguf(folder, tmp_path / "m.gguf", "f32", stop_token_id=5)
    assert error.value.hint
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".*"))


def test_weights_too_large_for_f16_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    make_model(tmp_path / "m", "Qwen2")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, file)
    with pytest.raises(ModelError, match=r"up_proj.*too large for f16"):
        write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16", stop_token_id=5)


def test_llama_3_frequencies_are_those_of_transformers(tmp_path):
    model = make_model(tmp_path / "m", "Llama", rope_parameters=LLAMA3)
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "q8_0", stop_token_id=5)
    plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    scaled = model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(plain / tensors(tmp_path / "m.gguf")["rope_freqs.weight"], scaled, rtol=1e-5)


def test_without_llama_cpp_the_hint_says_what_to_install(tiny_model, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setitem(sys.modules, "llama_cpp_py_sync", None)
    library.llama_library.cache_clear()
    with pytest.raises(DependencyError, match=r"takes llama\.cpp") as error:
        quantize(tmp_path / "a", tmp_path / "b", "q4_k_m")
    assert "pip install 'medqa[gguf]'" in error.value.hint
    library.llama_library.cache_clear()


def test_unknown_quantisations_are_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="'q4_k_xl' is unknown") as error:
        quantize(tmp_path / "a", tmp_path / "b", "q4_k_xl")
    assert "q4_k_m, q5_0" in error.value.hint


def test_numbers_of_quantisations_are_those_of_the_format():
    from medqa.publish.llama import _FTYPES

    names = {f"MOSTLY_{kind.upper()}": number for kind, number in _FTYPES.items()}
    assert names == {name: gguf.LlamaFileType[name].value for name in names}


# From here on llama.cpp runs.


@pytest.fixture
def llama_cpp_here():
    try:
        return library.llama_library()
    except DependencyError as error:
        pytest.skip(error.message)


@pytest.fixture
def starter():
    config = SourceConfig(name=STARTER)
    return [e for split in ("validation", "train") for e in read_split(config, split).examples][:100]


def likelihoods(model, item):
    """What transformers says of each letter."""
    sums = []
    for letter in item.letters:
        ids = torch.tensor([item.prefix + letter])
        with torch.inference_mode():
            logs = model(ids).logits[0].double().log_softmax(-1)
        start = len(item.prefix) - 1
        sums.append(sum(float(logs[start + n, token]) for n, token in enumerate(letter)))
    return sums


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", {"tie_word_embeddings": False, "attention_bias": True}),
        ("Llama", {"rope_parameters": LLAMA3}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32}),
    ],
)
def test_every_architecture_computes_the_same(family, settings, tmp_path, llama_cpp_here):
    tokenizer = make_tokenizer()
    model = make_model(tmp_path / "m", family, tokenizer, **settings)
    renderer = PromptRenderer(tokenizer)
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32", stop_token_id=renderer.stop_ids[0])
    engine = LlamaEngine(tmp_path / "m.gguf", renderer, max_length_tokens=512)
    examples = make_examples(4)
    items = make_items(renderer, examples, "medqa")
    # Letters of several tokens too.
    items += [
        Item(i.example, i.prefix, [[n, *letter, 7] for n, letter in enumerate(i.letters)]) for i in items
    ]
    for item, found in zip(items, engine.score(items), strict=True):
        assert engine.tokenize(renderer.prefix_text(item.example)) == item.prefix
        assert found.log_likelihoods == pytest.approx(likelihoods(model, item), abs=1e-4)
    prompts = [renderer.answer_ids(example, 0) for example in examples[:2]]
    [written, again] = engine.write(prompts, 6)
    ids = model.generate(
        torch.tensor(prompts[:1]), max_new_tokens=6, do_sample=False, eos_token_id=renderer.stop_ids
    )
    assert written.text == tokenizer.decode(ids[0][len(prompts[0]) :], skip_special_tokens=True).strip()
    # Two texts at once, a token of each in turn, are those that are written alone.
    turns = list(itertools.zip_longest(*(engine.stream(prompt, 6) for prompt in prompts)))
    ends = [next(part for part in reversed(parts) if part) for parts in zip(*turns, strict=True)]
    assert ends == engine.write(prompts, 6) == [written, again]
    long = Item(examples[0], items[0].prefix * 20, items[0].letters)
    assert engine.score([long])[0].status == "too_long"
    assert engine.write([long.prefix], 4) == [Written("", False)]
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.score(items)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_gguf_that_is_cut_is_refused(tiny_model, tmp_path, tokenizer, llama_cpp_here, share):
    write_gguf(tiny_model, tmp_path / "m.gguf", "f32", stop_token_id=tokenizer.eos_token_id)
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: round(share * len(whole))])
    with pytest.raises(ModelError) as error:
        LlamaEngine(tmp_path / "m.gguf", PromptRenderer(tokenizer), max_length_tokens=64)
    assert error.value.hint


@pytest.mark.slow
def test_a_file_that_is_no_gguf_is_refused_with_its_reason(tmp_path, tokenizer, llama_cpp_here, capfd):
    (tmp_path / "bad.gguf").write_text("not a model")
    with pytest.raises(ModelError, match="invalid magic"):
        LlamaEngine(tmp_path / "bad.gguf", PromptRenderer(tokenizer), max_length_tokens=64)
    with pytest.raises(ModelError, match="can't quantise"):
        quantize(tmp_path / "bad.gguf", tmp_path / "out.gguf", "q4_k_m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.gguf"]
    assert capfd.readouterr() == ("", "")


TEXTS = [
    "Metoprolol 47.5 mg b.i.d.; HbA1c 8.25 %, eGFR 59 mL/min/1.73 m\u00b2",
    "\u03b2-blocker, \u03b11-antitrypsin, TGF-\u03b2 \u2265 3\u00d7ULN, 5\u2032-UTR",
    "A.\n\nB.\r\n \n\tC.   D.\n\n\n  E",
    "Patient's pain doesn't radiate; I'LL, WE'RE, it'S na\u00efve \u2014 caf\u00e9",
    "1234567890 12 3 45678",
    "\u60a3\u8005 \u0431\u043e\u043b\u044c \U0001f48a\U0001f9ec ?!...))) <notatoken> a_b",
    "",
    " ",
]


@pytest.mark.slow
def test_qwen_3s_own_tokenizer_is_read_alike(tmp_path, starter, llama_cpp_here):
    from transformers import AutoTokenizer

    if not QWEN3.exists():
        pytest.skip(f"needs {QWEN3.name} beside the checkout, which is not there")
    tokenizer = AutoTokenizer.from_pretrained(QWEN3)
    model = make_model(tmp_path / "m", "Qwen3", tokenizer, vocab_size=151936, tie_word_embeddings=True)
    renderer = PromptRenderer(tokenizer)
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32", stop_token_id=renderer.stop_ids[0])
    found = contents(tmp_path / "m.gguf")
    assert found["tokenizer.ggml.pre"] == "qwen2"
    assert found["tokenizer.ggml.tokens"][found["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    engine = LlamaEngine(tmp_path / "m.gguf", renderer, max_length_tokens=512)
    control = ["<|im_start|>user\n3 \u03b2<|im_end|>\n<think>\n\n</think>\n\nAnswer:"]
    for text in [*TEXTS, *control, *(renderer.prefix_text(example) for example in starter)]:
        assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text
    [item] = make_items(renderer, starter[:1], "medqa")
    [found] = engine.score([item])
    assert found.log_likelihoods == pytest.approx(likelihoods(model, item), abs=1e-4)
    engine.close()


@pytest.fixture(scope="module")
def merged(built_in_run, tmp_path_factory):
    """The built-in model, tuned and merged; with what it says in this process."""
    from medqa.evaluate.engine import LocalEngine
    from medqa.model.tuned import load_tuned
    from medqa.publish.merge import merge, write_merged

    folder = tmp_path_factory.mktemp("merged")
    tuned = load_tuned(built_in_run, device="cpu", dtype="fp32")
    config = SourceConfig(name=STARTER)
    starter = [e for split in ("validation", "train") for e in read_split(config, split).examples][:100]
    items = make_items(tuned.renderer, starter, "medqa")
    local = LocalEngine(tuned)
    scored = local.score(items)
    prompts = [tuned.renderer.answer_ids(example, 0) for example in starter[:2]]
    written = local.write(prompts, 24)
    write_merged(merge(tuned), tuned.renderer, folder / "model", "fp32")
    return folder, tuned.renderer, items, scored, (prompts, written)


def differences(ours, theirs):
    """How many letters are equal, and by how much probabilities differ."""
    pairs = list(zip(ours, theirs, strict=True))
    apart = [np.abs(np.subtract(p.probabilities, q.probabilities)) for p, q in pairs]
    return sum(p.choice == q.choice for p, q in pairs), float(np.max(apart)), float(np.mean(apart))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "letters", "most", "mean"),
    [("f32", 100, 1e-3, 1e-4), ("f16", 99, 5e-3, 1e-3), ("q8_0", 95, 0.1, 0.03), ("q4_k_m", 60, 0.6, 0.15)],
)
def test_the_built_in_model_answers_alike(kind, letters, most, mean, merged, llama_cpp_here):
    folder, renderer, items, scored, (prompts, written) = merged
    source = folder / f"{kind if kind in WRITTEN else 'f32'}.gguf"
    if not source.exists():
        write_gguf(folder / "model", source, source.stem, stop_token_id=renderer.stop_ids[0])
    if kind not in WRITTEN:
        assert kind in QUANTIZED
        quantize(source, folder / f"{kind}.gguf", kind, num_threads=2)
    engine = LlamaEngine(folder / f"{kind}.gguf", renderer, max_length_tokens=2048)
    found = differences(scored, engine.score(items))
    assert found[0] >= letters
    assert found[1] <= most
    assert found[2] <= mean
    if kind == "f32":
        texts = [renderer.prefix_text(item.example) for item in items]
        assert [engine.tokenize(text) for text in texts] == [item.prefix for item in items]
        for text in TEXTS:
            assert engine.tokenize(text) == renderer.encode_all([text])[0], text
        assert engine.write(prompts, 24) == written
    engine.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_python_answers_alike(merged):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it is compiled)")
    folder, renderer, items, scored, _ = merged
    if not (folder / "f32.gguf").exists():
        write_gguf(folder / "model", folder / "f32.gguf", "f32", stop_token_id=renderer.stop_ids[0])
    model = llama_cpp.Llama(
        str(folder / "f32.gguf"), n_ctx=2048, n_gpu_layers=0, verbose=False, logits_all=True, flash_attn=False
    )
    assert model.token_eos() == renderer.stop_ids[0]
    assert model.metadata["tokenizer.chat_template"] == renderer.tokenizer.chat_template
    for item, ours in list(zip(items, scored, strict=True))[:20]:
        text = renderer.prefix_text(item.example)
        assert model.tokenize(text.encode(), add_bos=False, special=True) == item.prefix
        model.reset()
        model.eval(item.prefix)
        letters = model.scores[len(item.prefix) - 1][[letter[0] for letter in item.letters]]
        likely = np.exp(letters - letters.max())
        assert likely / likely.sum() == pytest.approx(ours.probabilities, abs=5e-3)  # its cache is f16
    model.close()
