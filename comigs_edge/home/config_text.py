"""The config.toml that `init` writes: every setting with its default in a comment."""

from __future__ import annotations

from comigs_edge.home.config import HOME_FORMAT, BaseConfig

TEMPLATE = """\
# Settings of comigs-edge. A line that starts with # shows the default; remove the # to change it.
format = {format}             # of this folder; leave it
profile = "{profile}"       # what the device can carry: auto, laptop, pi4, pi5, jetson, jetson-agx

[base]                 # the model that everything here belongs to; leave it
name = "{name}"
sha256 = "{sha256}"
size = {size}

[model]
{specialists}        # local experts beside the generalist; default: planned
expert_form = "{form}"   # lora: low-rank updates in the MLP; parallel: small MLPs beside it, a compact file
# rank = 8               # of each low-rank update
# expert_width = 32      # of a parallel expert; default: as many weights as LoRA of this rank
# blocks = 0             # experts are in so many last blocks; 0: in all
# alpha = 16.0           # updates are scaled by alpha / sqrt(rank)
# experts_per_token = 2
# attention = false      # also one shared low-rank update of the attention; it is part of the generalist

[train]
# steps = 200            # expert steps of one training
# batch = 8              # rows in a step; default: this and the next five are planned, see: comigs-edge plan
# context = 128          # tokens in a row
# threads = 2
# precision = "float32"  # of the products: or bfloat16
# base = "dequantised"   # ahead, in memory; or quantised: it stays in its file, and a block is dequantised for its turn
# checkpointing = "none" # what is computed again for the backward pass: block, attention or none
# cache_mb = 2000        # of disk for the outputs of blocks without experts, 0: none; default: a quarter of what is free
# expert_learning_rate = 0.004  # default: this for LoRA, 0.012 for parallel experts
# final_learning_rate = 0.0004  # default: a tenth of it
# router_learning_rate = 0.02
# router_offset_rate = 0.2  # how fast it learns which expert to prefer in all blocks whatever the token; 0: not at all
# rates_by_weight = true # an expert learns in proportion to the weight that the router gives it on validation text
# warmup_steps = 0
# router_period = 30     # expert steps on training text, then ...
# router_steps = 10      # ... router steps on validation text
# balance_weight = 0.01  # of the load-balance loss, where it is not constant
# weight_decay = 0.01
# validation_rows = 32   # rows of validation text that choose the state, half of it at most; the router learns from the rest
# checkpoint_minutes = 15.0
# seed = 42

[pause]                # training waits, and goes on by itself, while ...
# enabled = true
# temperature = 95.0     # ... the device is hotter, in degrees Celsius; default: 80 on a Raspberry Pi
# battery = 30           # ... its battery holds less, in percent, and it is not plugged in
# memory_mb = 100        # ... less memory is left
# load = 0.4             # ... other programs use more than this share of the cores

[data]
# training = 0.8         # share of the documents; the rest is test text
# validation = 0.1

[evaluate]
# context = 512          # tokens
# max_tokens = 16384     # of test text that are measured

[quantize]
# format = "Q8_0"        # block format in which the exported file holds what was trained
# start = 1.0            # share of the steps before training computes in that format; default: 0.65 for LoRA at 4
                         # and 5 bits, 0 for parallel experts, else 1 (never)

[export]
# layout = "merged"      # or hot: LoRA experts as files that llama.cpp swaps while it runs

[chat]
# system = ""            # system prompt; empty: the model's own
# temperature = 0.7
# top_p = 0.9
# context = 2048         # tokens
# max_tokens = 512       # of one answer
# threads = 2            # this and the next three are planned, see: comigs-edge plan
# mmap = true            # the model's file is mapped and not read into memory
# cache = "F16"          # how keys and values are kept: or Q8_0, half the memory and slower
# batch = 512            # tokens of a prompt that are computed together

[fleet]                # once the device has joined a coordinator
# sync = true            # exchange generalists while training
# gate = 0.1             # a new generalist that makes the validation text worse by more, in nats a token, is not taken over
# report_loss = false    # tell the coordinator the validation loss: it is shown on its status page
"""


def text(base: BaseConfig, profile: str, specialists: int | None, expert_form: str) -> str:
    """A commented config.toml."""
    chosen = "# specialists = 1" if specialists is None else f"specialists = {specialists}"
    return TEMPLATE.format(
        format=HOME_FORMAT, profile=profile, name=base.name, sha256=base.sha256, size=base.size, specialists=chosen,
        form=expert_form,
    )  # fmt: skip
