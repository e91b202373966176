"""A GPT that learns and writes, against `transformers` with the same weights.

Run ``python -m benchmarks.model``. Training: tokens per second of forward, backward and
AdamW without dropout, for 0.8 and 10 million parameters; and the share of the machine's
own peak, which is measured with the product of two large matrices. Writing: tokens per
second after a short prompt, greedily, with the cache; and what it would be without.
"""

import tempfile

import torch
import transformers
from torch.nn import functional as F

from benchmarks.timing import best_times
from lmcore import model, optimizer, pretrained, sample

SHAPES = {  # the inside, and the batch that is trained on
    "0.8 M": (
        {"d_model": 128, "n_layers": 4, "n_heads": 4, "vocab_size": 96},
        (16, 64),
    ),
    "10 M": (
        {"d_model": 320, "n_layers": 8, "n_heads": 8, "vocab_size": 512},
        (8, 128),
    ),
}
N_NEW = 100


def pair(shape: dict[str, int], max_len: int) -> tuple[model.GPT, torch.nn.Module]:
    """The same model twice: ours, and as `transformers` loads what we saved."""
    config = model.ModelConfig(**shape, max_len=max_len)
    ours = model.GPT(config, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save_pretrained(ours, folder)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-4, rtol=1e-4)
    return ours, theirs


def peak_flops() -> float:
    """Operations per second of a product of two large matrices."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / best_times(lambda: a @ b, rounds=5)[0]


def learner(network: torch.nn.Module, step, ids: torch.Tensor):
    """One training step of a network as a function without arguments."""

    def learn() -> None:
        output = network(ids[:, :-1])
        logits = getattr(output, "logits", output)
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        step.step()
        step.zero_grad()

    return learn


def bench_training(name: str, peak: float) -> None:
    """Print tokens per second of both, their ratio and our share of the peak."""
    shape, (n_rows, n_tokens) = SHAPES[name]
    ours, theirs = pair(shape, max_len=n_tokens)
    ids = torch.randint(shape["vocab_size"], (n_rows, n_tokens + 1))
    sides = [
        learner(ours.train(), optimizer.AdamW(ours.parameters(), lr=1e-4), ids),
        learner(theirs.train(), torch.optim.AdamW(theirs.parameters(), lr=1e-4), ids),
    ]
    count = n_rows * n_tokens
    fast, slow = (count / seconds for seconds in best_times(*sides, rounds=8))
    share = model.flops_per_token(ours.config, n_tokens) * fast / peak
    print(
        f"train {name:>5}: {fast:8,.0f} tokens/s, transformers {slow:8,.0f}, "
        f"{fast / slow:4.2f} x; {share:.0%} of the machine's peak"
    )


@torch.no_grad()
def bench_writing(name: str, n_rows: int) -> None:
    """Print tokens per second of writing, with and without the cache."""
    shape, _ = SHAPES[name]
    ours, theirs = pair(shape, max_len=2 * N_NEW)
    ours.eval(), theirs.eval()
    prompt = torch.randint(shape["vocab_size"], (n_rows, 16))
    config = sample.SamplingConfig(max_new_tokens=N_NEW, temperature=0.0)

    def without_cache() -> None:
        ids = prompt
        for _ in range(N_NEW):
            chosen = ours(ids)[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, chosen], dim=1)

    def written_by_theirs() -> torch.Tensor:
        return theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=N_NEW,
            min_new_tokens=N_NEW,
            do_sample=False,
            pad_token_id=0,
        )

    times = best_times(
        lambda: sample.generate(ours, prompt, config), written_by_theirs, without_cache
    )
    cached, other, uncached = (n_rows * N_NEW / seconds for seconds in times)
    print(
        f"write {name:>5}, batch {n_rows}: {cached:6,.0f} tokens/s, "
        f"transformers {other:6,.0f}, "
        f"{cached / other:4.2f} x; without the cache {uncached:6,.0f}, "
        f"{cached / uncached:4.1f} x"
    )


def main() -> None:
    """Measure and print."""
    transformers.logging.set_verbosity_error()
    peak = peak_flops()
    print(f"{torch.get_num_threads()} threads, peak {peak / 1e9:.0f} Gflop/s")
    for name in SHAPES:
        bench_training(name, peak)
    for name in SHAPES:
        for n_rows in (1, 8):
            bench_writing(name, n_rows)


if __name__ == "__main__":
    main()
