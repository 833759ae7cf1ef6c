"""The encoder of the RoBERTa family, architecture only.

A post-norm Transformer encoder with learned absolute positions and exact GELU:

    Transformer   Vaswani et al. 2017, arXiv:1706.03762 (attention, post-norm residuals)
    BERT          Devlin et al. 2019, arXiv:1810.04805 (token types, initial values)
    RoBERTa       Liu et al. 2019, arXiv:1907.11692 (positions count from the padding id + 1)
    DistilBERT    Sanh et al. 2019, arXiv:1910.01108 (no token types)
    XLM-R         Conneau et al. 2020, arXiv:1911.02116; CamemBERT, Martin et al. 2020,
                  arXiv:1911.03894 (RoBERTa's architecture)

Tokens of all rows lie end to end; only attention knows of rows. Parameter names are those of
`enrobe.checkpoint.shapes`, so a checkpoint loads by name.

Legend: T tokens, B rows, H hidden, V vocabulary, L layers, P positions that the last layer is
confined to.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from enrobe.config import EncoderConfig
from enrobe.nn.attention import Ids, Spans, attend, plan
from enrobe.nn.dropout import Dropout
from enrobe.nn.norms import add_norm
from enrobe.nn.products import project, project_gelu
from enrobe.nn.whole_layer import whole_layer

# How every parameter starts, by name; the first match holds. `normal` has a mean of 0 and a
# standard deviation of initializer_range (BERT, RoBERTa). The word embedding of pad_id is 0.
INITIAL = (
    ("*bias", "zeros"),
    ("*norm.weight", "ones"),
    ("*weight", "normal"),
)


@torch.no_grad()
def initialise(module: nn.Module, config: EncoderConfig) -> None:
    """Give every parameter of a module its initial value, as the table says."""
    for name, parameter in module.named_parameters():
        how = next(how for pattern, how in INITIAL if fnmatchcase(name, pattern))
        if how == "normal":
            parameter.normal_(0.0, config.initializer_range)
        else:
            parameter.fill_(1.0 if how == "ones" else 0.0)
        if name == "embeddings.word.weight":
            parameter[config.pad_id] = 0.0


@torch.no_grad()
def sinusoidal_positions(model: nn.Module, config: EncoderConfig) -> None:
    """Start the position table from sinusoids (Vaswani et al. 2017, section 3.5) of the usual size.

    It is learned like any other; but near positions are alike from the start, so that a distance
    learned at one place is half learned at the others.
    """
    table = model.get_parameter("embeddings.position.weight")
    places = torch.arange(len(table))[:, None]
    waves = torch.exp(-math.log(10_000) * torch.arange(0, table.shape[1], 2) / table.shape[1])
    # The mean square of a sinusoid is a half.
    size = config.initializer_range * math.sqrt(2)
    table[:, 0::2] = torch.sin(places * waves) * size
    table[:, 1::2] = (torch.cos(places * waves) * size)[:, : table.shape[1] // 2]


class Named(nn.Module):
    """Modules by name, like nn.ModuleDict, but any name will do, `keys` and `train` too.

    nn.ModuleDict refuses a name that is also a method of nn.Module; ours come from checkpoints
    and from users.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(modules)

    def __getitem__(self, name: str) -> nn.Module:
        module = self._modules[name]
        assert module is not None
        return module

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, without its own flag, which would bar the name `training`."""
        for module in self.children():
            module.train(mode)
        return self


class Layer(nn.Module):
    """One layer: attention, then a feed-forward of GELU(x W + b) W' + b', norms after each sum."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, wide = config.hidden_size, config.intermediate_size
        self.num_heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, config.layer_norm_eps)
        self.up = nn.Linear(hidden, wide)
        self.down = nn.Linear(wide, hidden)
        self.norm = nn.LayerNorm(hidden, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, hidden_TH: Tensor, spans: Spans) -> Tensor:
        """Shapes: hidden (T, H) -> (P, H), where P is T unless the spans pick positions."""
        whole_TH = whole_layer(self, hidden_TH, spans)
        if whole_TH is not None:
            return whole_TH
        if spans.picks is None:
            asking_PH = hidden_TH
            query_PH, key_TH, value_TH = project(hidden_TH, self.query, self.key, self.value)
        else:
            asking_PH = hidden_TH.index_select(0, spans.picks)
            (query_PH,) = project(asking_PH, self.query)
            key_TH, value_TH = project(hidden_TH, self.key, self.value)
        mixed_PH = attend(
            query_PH,
            key_TH,
            value_TH,
            spans,
            heads=self.num_heads,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        (mixed_PH,) = project(mixed_PH, self.output)
        mixed_PH = add_norm(asking_PH, mixed_PH, self.attention_norm, self.dropout)
        (out_PH,) = project(project_gelu(mixed_PH, self.up), self.down)
        return add_norm(mixed_PH, out_PH, self.norm, self.dropout)


class Encoder(nn.Module):
    """Embeddings and layers; new weights are drawn from torch's generator.

    To compile it, compile its layers, each for itself: the plan of a batch is made outside.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        tables = {"word": config.vocab_size, "position": config.max_positions}
        if config.type_vocab_size:
            tables["token_type"] = config.type_vocab_size
        embeddings: dict[str, nn.Module] = {
            name: nn.Embedding(rows, hidden) for name, rows in tables.items()
        }
        embeddings["norm"] = nn.LayerNorm(hidden, config.layer_norm_eps)
        self.embeddings = Named(embeddings)
        self.gradient_checkpointing = False
        # whether a layer keeps its input alone and is run again for its gradient (Chen et al. 2016)
        self.dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        initialise(self, config)

    def forward(
        self,
        ids_T: Tensor,
        offsets: Ids,
        types_T: Tensor,
        layers: Sequence[int],
        at: Ids | None = None,
    ) -> dict[int, Tensor]:
        """Hidden states of the asked layers, in the caller's order; no layer above them is run.

        Args:
            ids_T: token ids of all rows, end to end.
            offsets: row offsets (B+1,), a host array from 0 to T; rows of 1 to max_tokens tokens.
            types_T: token types; not read where the family has none.
            layers: 0 for the embeddings after their norm, up to L for the last layer.
            at: positions (P,) of the flat batch; the last layer is then computed there alone.

        Shapes: ids and types (T,) -> each layer (T, H); the last (P, H) with `at`.
        """
        assert all(0 <= layer <= len(self.layers) for layer in layers)
        batch = plan(offsets, at, ids_T.device)
        assert batch.every.most_keys <= self.config.max_tokens
        hidden_TH = self._embed(ids_T[batch.order], types_T[batch.order], batch.places)
        wanted = {}
        if 0 in layers:
            wanted[0] = hidden_TH.index_select(0, batch.every.restore)
        for number, layer in enumerate(self.layers[: max(layers, default=0)], start=1):
            spans = batch.last if number == len(self.layers) else batch.every
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden_TH = checkpoint(layer, hidden_TH, spans, use_reentrant=False)
            else:
                hidden_TH = layer(hidden_TH, spans)
            if number in layers:
                wanted[number] = hidden_TH.index_select(0, spans.restore)
        return wanted

    def _embed(self, ids_T: Tensor, types_T: Tensor, places_T: Tensor) -> Tensor:
        tables = self.embeddings
        hidden_TH = tables["word"](ids_T) + tables["position"](
            places_T + self.config.position_offset
        )
        if self.config.type_vocab_size:
            hidden_TH = hidden_TH + tables["token_type"](types_T)
        embedded_TH: Tensor = self.dropout(tables["norm"](hidden_TH))
        return embedded_TH
