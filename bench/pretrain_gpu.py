"""Pretraining on one GPU: a training step of Enrobe's against one of transformers', bfloat16.

    python bench/pretrain_gpu.py [--rows 128] [--steps 12] [--rounds 2]

RoBERTa-base (vocabulary 50,265) from random weights on full rows of 512 tokens, 15% of them masked;
autocast to bfloat16, fused AdamW, gradients clipped, no dropout. Contenders: Enrobe as
`enrobe pretrain` runs it (layers compiled, variable-length FlashAttention, the last layer and the
head at masked positions alone); transformers' RobertaForMaskedLM with `sdpa` attention, as it is
and compiled whole. Figures are tokens a second, medians of the steps of all rounds, in turn; one
process. Utilisation is the share of this device's own bfloat16 matrix rate.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import write_report

from enrobe.config import EncoderConfig, HeadConfig
from enrobe.nn.heads import Model
from enrobe.train.losses import masked_lm_loss
from enrobe.train.stretch import peak as peak_of
from enrobe.train.work import encoder_flops

VOCABULARY, LENGTH, RATE = 50_265, 512, 0.15
SHAPES = {"base": (12, 768, 12, 3072), "6x512": (6, 512, 8, 2048)}
Step = Callable[[], torch.Tensor]


def batch(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    ids = rng.integers(4, VOCABULARY - 1, (rows, LENGTH))
    ids[:, 0], ids[:, -1] = 0, 2
    at = np.sort(rng.permutation(rows * LENGTH)[: int(rows * LENGTH * RATE)])
    return {"ids": ids, "at": at, "targets": ids.reshape(-1)[at].copy()}


def stepper(model: torch.nn.Module, loss: Step) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(value)

    return step


def configuration(shape: str) -> EncoderConfig:
    layers, hidden, heads, wide = SHAPES[shape]
    return EncoderConfig(
        family="roberta",
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=wide,
        max_positions=LENGTH + 2,
        position_offset=2,
        type_vocab_size=1,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )


def ours(shape: str, data: dict[str, Any], *, compiled: bool = True) -> Callable[[], None]:
    torch.manual_seed(1)
    model = Model(configuration(shape), {"mlm": HeadConfig(kind="mlm")}).cuda()
    if compiled:
        for layer in model.layers:
            layer.compile()
    rows = len(data["ids"])
    offsets = np.arange(rows + 1) * LENGTH
    flat = data["ids"].reshape(-1)

    def loss() -> torch.Tensor:
        value, _ = masked_lm_loss(
            model,
            "mlm",
            torch.from_numpy(flat).cuda(),
            offsets,
            torch.zeros(len(flat), dtype=torch.int64, device="cuda"),
            data["at"],
            torch.from_numpy(data["targets"]).cuda(),
        )
        return value / len(data["at"])

    return stepper(model, loss)


def theirs(shape: str, data: dict[str, Any], *, compiled: bool) -> Callable[[], None]:
    from transformers import RobertaConfig, RobertaForMaskedLM

    layers, hidden, heads, wide = SHAPES[shape]
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=wide,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    torch.manual_seed(1)
    model = RobertaForMaskedLM(config).cuda()
    call = torch.compile(model) if compiled else model
    labels = np.full(data["ids"].size, -100)
    labels[data["at"]] = data["targets"]
    labels = labels.reshape(data["ids"].shape)

    def loss() -> torch.Tensor:
        ids = torch.from_numpy(data["ids"]).cuda()
        value: torch.Tensor = call(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            labels=torch.from_numpy(labels).cuda(),
        ).loss
        return value

    return stepper(model, loss)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="Enrobe only")
    options = parser.parse_args()
    data = batch(options.rows)
    contenders: dict[str, Callable[[], Callable[[], None]]] = {
        "enrobe": lambda: ours(options.shape, data),
        "enrobe, not compiled": lambda: ours(options.shape, data, compiled=False),
    }
    if not options.alone:
        contenders["transformers"] = lambda: theirs(options.shape, data, compiled=False)
        contenders["transformers, compiled"] = lambda: theirs(options.shape, data, compiled=True)
    steps, times, failed = {}, {}, {}
    for name, make in contenders.items():
        began = time.perf_counter()
        try:
            steps[name] = make()
            for _ in range(3):
                steps[name]()
        except Exception as error:  # a contender that cannot run is told of
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            steps.pop(name, None)
        torch.cuda.synchronize()
        print(f"{name}: ready after {time.perf_counter() - began:.1f} s", flush=True)
    for _ in range(options.rounds):
        for name, step in steps.items():
            for _ in range(options.steps):
                began = time.perf_counter()
                step()
                torch.cuda.synchronize()
                times.setdefault(name, []).append(time.perf_counter() - began)
    tokens, masked = options.rows * LENGTH, len(data["at"])
    shape = configuration(options.shape)
    lengths = np.full(options.rows, LENGTH)
    head = 2 * masked * shape.hidden_size * (shape.hidden_size + VOCABULARY)
    flops = 3 * (encoder_flops(shape, lengths, read=masked) + head)
    peak = peak_of(torch.device("cuda"), True)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "shape": options.shape,
        "tokens_a_step": tokens,
        "own_matrix_rate_tflops": peak / 1e12,
        "failed": failed,
        "contenders": {},
    }
    for name, seconds in times.items():
        median = statistics.median(seconds)
        report["contenders"][name] = {
            "tokens_per_second": tokens / median,
            "seconds": seconds,
            "ratio_of_enrobe_to_it": median / statistics.median(times["enrobe"]),
        }
    ours_seconds = statistics.median(times["enrobe"])
    report["utilisation_of_enrobe"] = flops / ours_seconds / peak
    write_report("pretrain_gpu-" + options.shape, report)


if __name__ == "__main__":
    main()
