"""A Hugging Face folder becomes a base: logits against transformers, token ids against tokenizers and sentencepiece.

transformers makes small random models and saves them as it saves any model; it is installed for these tests only.
"""

import json
import shutil

import pytest
import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from comigs_edge import llamacpp
from comigs_edge.base.convert import convert
from comigs_edge.base.convert_tokenizer import _RULES
from comigs_edge.base.hparams import read_hparams
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import open_base
from quantize.gguf_file import GGUFFile
from tests.conftest import divergence, llama_logits
from tests.tiny import some_text

TEXT = (
    "Der Zug nach Zürich fährt um 17:45 Uhr ab; l'été à Montréal n'est pas fini, it's 1234567 m². "
    "Żółć i gęś. Привет, мир! Γειά σου. 你好，世界。 こんにちは。 مرحبا بالعالم नमस्ते 👋🏽"
    "  two  spaces\n\n\tfoo_bar(x) != 3.14\r\n"
)
CORPUS = [TEXT, "We'll see: they're the ones who don't.", "1 22 333 4444", "aaa bbb   ccc\n\n\nddd"] * 20
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
RULES = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
} | {
    name: [
        pre_tokenizers.Split(tokenizers.Regex(rule), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    for rule, name in _RULES.items()
}
VOCABULARY = 400
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "llama": transformers.LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama, tied": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama 3.1": transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama, linear": transformers.LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=None, head_dim=32),
    "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=32),
}


def byte_level(folder, rule="smollm"):
    """A tokenizer.json trained on the text, with its settings."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(RULES[rule]) if len(RULES[rule]) > 1 else RULES[rule][0]
    tokenizer.decoder = decoders.ByteLevel()
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def pieces(folder):
    """A tokenizer.model trained on the text."""
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=VOCABULARY, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", split_digits=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def save_model(folder, config, **options):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than the library's start, so that the logits tell models apart; norms near 1, biases near 0.
            spread = 0.2 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * spread)
            assert name
    model.save_pretrained(folder, **options)
    return model


def converted_vocabulary(folder):
    """The tokenizer of the converted folder in llama.cpp."""
    convert(folder, folder / "base.gguf", "F16")
    return llamacpp.load(folder / "base.gguf", vocab_only=True)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(tmp_path, name):
    model = save_model(tmp_path, MODELS[name])
    byte_level(tmp_path)
    convert(tmp_path, tmp_path / "base.gguf", "F32")
    ids = torch.randint(3, VOCABULARY, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    ours = Model(open_base(tmp_path / "base.gguf"), None)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
        found = ours.logits(ours(torch.tensor([ids])).hidden)
    for logits in (found, llama_logits(tmp_path / "base.gguf", ids)):
        assert divergence(expected, logits) < 1e-8
        assert (expected.argmax(-1) == logits.argmax(-1)).all()


@pytest.mark.parametrize("rule", RULES)
def test_token_ids_of_a_byte_level_tokenizer_are_the_same(tmp_path, rule):
    save_model(tmp_path, MODELS["llama"])
    tokenizer = byte_level(tmp_path, rule)
    llama = converted_vocabulary(tmp_path)
    for text in (TEXT, "We'll see, it's 123456 o'clock.", " \n \n  x", "…—“quoted”"):
        assert llama.tokenize(text.encode(), add_bos=True, special=False) == tokenizer.encode(text).ids
    ids = llama.tokenize(b"<|im_start|>user\nhi<|im_end|>", add_bos=False, special=True)
    assert (ids[0], ids[-1]) == (1, 2)
    assert (llama.token_bos(), llama.token_eos()) == (1, 2)
    assert GGUFFile(tmp_path / "base.gguf").metadata["tokenizer.chat_template"] == TEMPLATE


def test_token_ids_of_a_sentencepiece_tokenizer_are_the_same(tmp_path):
    save_model(tmp_path, MODELS["llama"])
    model = pieces(tmp_path)
    llama = converted_vocabulary(tmp_path)
    for text in (TEXT, "We'll see, it's 123456 o'clock.", "…—“quoted”"):
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == model.encode(text)
    assert llama.tokenize(b"a", add_bos=True)[0] == model.bos_id()


def test_shards_are_one_model_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "one").mkdir()
    save_model(tmp_path / "one", MODELS["llama"])
    byte_level(tmp_path / "one")
    save_model(tmp_path / "many", MODELS["llama"], max_shard_size="100KB")
    for path in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "one" / path, tmp_path / "many" / path)
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    for name in ("one", "many"):
        convert(tmp_path / name, tmp_path / f"{name}.gguf", "Q8_0")
    one, many = GGUFFile(tmp_path / "one.gguf"), GGUFFile(tmp_path / "many.gguf")
    assert one.tensors.keys() == many.tensors.keys()
    assert all((one.raw(name) == many.raw(name)).all() for name in one.tensors)
    shards[1].unlink()
    with pytest.raises(ComigsError, match=f"lacks {shards[1].name}"):
        convert(tmp_path / "many", tmp_path / "x.gguf", "Q8_0")


def test_formats_of_a_converted_base(tmp_path):
    save_model(tmp_path, MODELS["qwen2"])
    byte_level(tmp_path)
    for name in ("Q4_0", "BF16"):
        convert(tmp_path, tmp_path / "base.gguf", name)
        tensors = GGUFFile(tmp_path / "base.gguf").tensors
        assert tensors["blk.0.ffn_up.weight"].format.name == name
        assert tensors["token_embd.weight"].format.name == ("Q8_0" if name == "Q4_0" else name)
        assert tensors["blk.0.attn_q.bias"].format.name == tensors["output_norm.weight"].format.name == "F32"
        assert torch.isfinite(llama_logits(tmp_path / "base.gguf", [5, 6, 7])).all()


def test_a_folder_becomes_a_home_that_trains_and_chats(run, home, tmp_path):
    folder = tmp_path / "my-qwen"
    save_model(folder, MODELS["qwen2"])
    byte_level(folder, "qwen2")
    run("init", "--base", folder, "--format", "Q8_0")
    (tmp_path / "notes.txt").write_text(some_text())
    settings = home / "config.toml"
    settings.write_text(settings.read_text().replace("[train]\n", "[train]\nbatch = 2\ncontext = 32\nvalidation_rows = 2\n"))
    run("data", "add", tmp_path / "notes.txt")
    run("train", "--steps", "2")
    assert run("chat", "--prompt", "Hi", "--temperature", "0").exit_code == 0
    assert json.loads(run("status", "--json").stdout)["base"]["name"] == "my-qwen"
    assert Tokenizer(home / "base.gguf").eos == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "granite"}, r"type 'granite', whose factors on embeddings, .* choose a base of llama"),
        ({"model_type": "granitemoehybrid"}, r"type 'granitemoehybrid', whose Mamba layers are not computed in training"),
        ({"model_type": "gemma2"}, r"type 'gemma2', of which llama.cpp runs no exact mixture; choose a base of llama"),
        ({"model_type": "gpt2"}, "type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "scales RoPE by 'yarn'"),
        ({"mlp_bias": True}, "an MLP without biases"),
    ],
)
def test_what_has_no_exact_mixture_is_refused_before_anything_is_made(run, home, tmp_path, change, message):
    save_model(tmp_path / "m", MODELS["llama"])
    byte_level(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ComigsError, match=message):
        convert(tmp_path / "m", tmp_path / "base.gguf", "Q8_0")
    assert message.split("'")[0][:20].split(",")[0] in run("init", "--base", tmp_path / "m", code=1).stderr
    assert not home.exists()


def test_bad_folders_are_one_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is no Hugging Face model: it is empty; download" in run("init", "--base", tmp_path / "empty", code=1).stderr
    (tmp_path / "empty" / "readme.md").touch()
    assert "it has no config.json; name a folder" in run("init", "--base", tmp_path / "empty", code=1).stderr
    (tmp_path / "empty" / "small.gguf").touch()
    assert "it holds small.gguf; name that file" in run("init", "--base", tmp_path / "empty", code=1).stderr
    save_model(tmp_path / "m", MODELS["llama"])
    assert "neither tokenizer.model nor tokenizer.json" in run("init", "--base", tmp_path / "m", code=1).stderr
    tokenizer = byte_level(tmp_path / "m")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    assert "splits text by a rule that is not one of gpt-2, smollm" in run("init", "--base", tmp_path / "m", code=1).stderr
    byte_level(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is damaged or cut short" in run("init", "--base", tmp_path / "m", code=1).stderr
    weights.rename(tmp_path / "m" / "pytorch_model.bin")
    assert "pickle files can run code" in run("init", "--base", tmp_path / "m", code=1).stderr


def test_damaged_settings_are_one_sentence_and_the_base_that_is_there_stays(run, home, tmp_path, tiny_path):
    save_model(tmp_path / "m", MODELS["llama"])
    byte_level(tmp_path / "m")
    run("init", "--base", tiny_path)
    before = (home / "base.gguf").read_bytes()
    good = {name: (tmp_path / "m" / name).read_text() for name in ("config.json", "tokenizer_config.json")}
    config = json.loads(good["config.json"])
    for name, content in (
        ("config.json", "[1, 2]"),
        ("config.json", json.dumps({key: value for key, value in config.items() if key != "num_hidden_layers"})),
        ("config.json", json.dumps(config | {"num_hidden_layers": 3})),  # one block more than there is
        ("tokenizer_config.json", '{"bos_token": '),
    ):
        (tmp_path / "m" / name).write_text(content)
        shown = run("init", "--force", "--base", tmp_path / "m", code=1).stderr
        assert shown.strip().splitlines()[-1].startswith("error: ")
        (tmp_path / "m" / name).write_text(good[name])
        assert (home / "base.gguf").read_bytes() == before
        assert sorted(path.name for path in home.iterdir()) == ["base.gguf", "config.toml", "state"]
    run("init", "--force", "--base", tmp_path / "m")
    assert run("status").exit_code == 0


def test_a_null_in_the_settings_means_the_tokenizers_default(tmp_path):
    save_model(tmp_path, MODELS["llama"])
    model = pieces(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": null}')
    llama = converted_vocabulary(tmp_path)
    assert llama.tokenize(TEXT.encode(), add_bos=False, special=False) == model.encode(TEXT)


SPACES = {  # how transformers 5 writes sentencepiece's spaces
    "normalizer": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),
    "metaspace": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "no prefix": (normalizers.Replace(" ", "▁"), None),
}


def merged_pieces(folder, spaces):
    """A tokenizer.json that works like sentencepiece's, trained on the text."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    normalizer, pre_tokenizer = SPACES[spaces]
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>", *data], limit_alphabet=60)
    tokenizer.train_from_iterator([line for text in CORPUS for line in text.split()], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # the bytes are no special tokens
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    if normalizer:
        tokenizer.normalizer = normalizer
    else:
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Sequence([]), pre_tokenizer
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return tokenizer


@pytest.mark.parametrize("spaces", SPACES)
def test_pieces_in_a_tokenizer_json_alone_give_the_same_token_ids(tmp_path, spaces):
    save_model(tmp_path, MODELS["llama"])
    theirs = merged_pieces(tmp_path, spaces)
    llama = converted_vocabulary(tmp_path)
    for text in (*CORPUS[:4], some_text(2)):
        found = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert found == theirs.encode(text, add_special_tokens=False).ids


def test_a_tokenizer_model_that_is_none_leaves_it_to_tokenizer_json(tmp_path):
    save_model(tmp_path, MODELS["llama"])
    theirs = byte_level(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    found = converted_vocabulary(tmp_path).tokenize(TEXT.encode(), add_bos=False, special=False)
    assert found == theirs.encode(TEXT, add_special_tokens=False).ids


def test_the_template_in_a_file_of_its_own_goes_before_that_of_the_settings(tmp_path):
    save_model(tmp_path, MODELS["llama"])
    byte_level(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("new" + TEMPLATE)
    convert(tmp_path, tmp_path / "base.gguf", "F32")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert GGUFFile(tmp_path / "base.gguf").metadata["tokenizer.chat_template"] == theirs == "new" + TEMPLATE


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "consolidated.safetensors"])
def test_what_lies_beside_a_model_is_left_out(tmp_path, name):
    save_model(tmp_path, MODELS["llama"])
    byte_level(tmp_path)
    convert(tmp_path, tmp_path / "alone.gguf", "F32")
    safetensors.torch.save_file({"layers.0.attention.wq.weight": torch.zeros(64, 64)}, tmp_path / name)
    convert(tmp_path, tmp_path / "beside.gguf", "F32")
    assert (tmp_path / "alone.gguf").read_bytes() == (tmp_path / "beside.gguf").read_bytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"rope_theta": None, "rope_parameters": None}, 1.0), ({"rope_parameters": None, "rope_scaling": {"factor": 4.0}}, 0.25)],
)
def test_a_missing_base_frequency_or_kind_of_scaling_has_the_usual_value(tmp_path, change, expected):
    save_model(tmp_path, MODELS["llama"])
    byte_level(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    convert(tmp_path, tmp_path / "base.gguf", "F32")
    found = read_hparams(GGUFFile(tmp_path / "base.gguf"))
    assert (found.rope_base, found.rope_scale) == (10000.0, expected)


def test_an_output_that_is_missing_and_not_tied_is_named(tmp_path):
    save_model(tmp_path, MODELS["llama, tied"])
    byte_level(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ComigsError, match=r"has no lm_head.weight"):
        convert(tmp_path, tmp_path / "base.gguf", "F32")


def test_a_tokenizer_that_is_not_made_of_merges_is_named(tmp_path):
    save_model(tmp_path, MODELS["llama"])
    unigram = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))
    unigram.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ComigsError, match="is a Unigram tokenizer"):
        convert(tmp_path, tmp_path / "base.gguf", "F32")
