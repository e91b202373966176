"""Trains a tiny model and saves its numbers; started by test_train under torchrun.

Arguments: the file to write, a configuration as JSON, the steps after which to stop.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from lmcore import processes, tokens, train


class TinyLM(nn.Module):
    """Two layers that mix a token with the mean of those before it."""

    def __init__(self, vocab_size=11, d_model=8, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(nn.Linear(2 * d_model, d_model) for _ in range(2))
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(d_model, vocab_size)

    def forward(self, ids):
        x = self.embedding(ids)
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)[:, None]
        for layer in self.layers:
            mean = x.cumsum(dim=1) / places
            x = x + self.dropout(layer(torch.cat([x, mean], dim=-1)).tanh())
        return self.output(self.norm(x))


def make_model(**options):
    torch.manual_seed(3)
    return TinyLM(**options)


def make_data(n_tokens=401, n_context=6, seed=5):
    """Every token is often the sum of the two before it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (n_tokens,), generator=generator)
    for place in range(2, n_tokens):
        if place % 3:
            ids[place] = (ids[place - 1] + ids[place - 2]) % 11
    return tokens.TokenDataset(ids, n_context)


def main():
    """Train, save, resume and train on; write what came out."""
    path, options, pause = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    with processes.join_team() as team:
        for n_steps in (pause, options["n_steps"]):
            config = train.TrainConfig(**(options | {"n_steps": n_steps}))
            model = make_model()
            trainer = train.Trainer(
                model,
                config,
                make_data(),
                make_data(59, seed=6),
                folder=path.parent / "run",
                progress=False,
            )
            trainer.resume()
            records = trainer.train()
        state = train.checkpoint.training_state(model, trainer.optimizer)
        if team.is_first:
            model = {name: value.tolist() for name, value in state["model"].items()}
            path.write_text(json.dumps({"model": model, "records": records}))


if __name__ == "__main__":
    main()
