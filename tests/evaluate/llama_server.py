"""A real model server for the tests: llama.cpp's own, as xllamacpp builds it, in a process of its own.

Run as a program, it serves one GGUF file until it is ended: `python llama_server.py SETTINGS_AS_JSON`.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np

QUANTS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_LAYERS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(source, target, adapter=None, quant="F32"):
    """Write a Llama model's GGUF anew: its weights without quantisation, and an adapter's added to them."""
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    deltas = adapter_deltas(adapter, heads) if adapter else {}
    writer = gguf.GGUFWriter(target, fields["general.architecture"])
    skipped = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in skipped:
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        weight = bf16(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        weight = weight + deltas.pop(tensor.name, np.float32(0))
        # Vectors stay as they are in every quantisation.
        kind = QUANTS[quant] if weight.ndim > 1 else QUANTS["F32"]
        writer.add_tensor(tensor.name, gguf.quantize(weight, kind), raw_dtype=kind)
    assert not deltas, f"no such weights: {list(deltas)}"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bf16(weight):
    """Round to bfloat16 as torch does: the built-in model is kept so."""
    bits = weight.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def adapter_deltas(adapter, heads):
    """What an adapter adds to each weight, by its name in a GGUF."""
    from safetensors.numpy import load_file

    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    scale = np.float32(config["lora_alpha"] / config["r"])
    tensors = load_file(Path(adapter) / "adapter_model.safetensors")
    deltas = {}
    for name, down in tensors.items():
        if "lora_A" in name:
            up = tensors[name.replace("lora_A", "lora_B")]
            number, layer = re.search(r"layers\.(\d+)\.(.+)\.lora_A", name).groups()
            delta, part = scale * (up @ down), _LAYERS[layer]
            if part in heads:
                delta = interleaved(delta, heads[part])
            deltas[f"blk.{number}.{part}.weight"] = delta
    return deltas


def interleaved(weight, num_heads):
    """Order the rows as llama.cpp turns them: the two halves of a head, row by row."""
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@contextlib.contextmanager
def serving(model, log, **settings):
    """Serve a GGUF file on a free port of this machine; the server's URL."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, __file__, json.dumps({"model": str(model), "port": port, **settings})]
    with Path(log).open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(port, process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def wait_for(port, process, log):
    import httpx

    for _ in range(600):
        assert process.poll() is None, f"the server ended: {Path(log).read_text()[-2000:]}"
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the server does not answer: {Path(log).read_text()[-2000:]}")


def serve(settings):
    """Serve until this process or the one that started it is ended."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = settings["port"]
    params.n_parallel = settings.get("slots", 4)
    params.n_ctx = settings.get("context", 1024) * params.n_parallel
    params.cpuparams.n_threads = 2
    # As exact as it goes: nothing in half precision.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server, parent = xllamacpp.Server(params), os.getppid()
    while server and os.getppid() == parent:
        time.sleep(0.5)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
